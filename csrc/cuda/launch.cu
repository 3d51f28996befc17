// The CUDA entry points of the ops: device guard, current stream, memory from torch's allocator. Nothing waits for the
// device and nothing is read back, so that every op can be captured into a CUDA graph.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../composite.h"
#include "kernels.cuh"

namespace fused_logistic {
namespace {

int multiprocessors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

using Kernel = void (*)(const Launch);

template <Output kOutput, class Z>
Kernel plain(DType target) {
  if (target == DType::kUInt8) return plain_kernel<kOutput, Z, uint8_t>;
  if (target == DType::kInt64) return plain_kernel<kOutput, Z, int64_t>;
  if constexpr (sizeof(Z) == 2) {
    if (target == DType::kFloat32) return plain_kernel<kOutput, Z, float>;
  }
  return plain_kernel<kOutput, Z, Z>;
}

template <Output kOutput>
Kernel kernel(const Problem& problem, bool is_plain) {
  if constexpr (kOutput <= Output::kLoss || kOutput == Output::kGradLogits) {
    if (is_plain) {
      const DType target = problem.target.dtype;
      switch (problem.logits.dtype) {
        case DType::kFloat64:
          return plain<kOutput, double>(target);
        case DType::kFloat16:
          return plain<kOutput, Half>(target);
        case DType::kBFloat16:
          return plain<kOutput, BFloat16>(target);
        default:
          return plain<kOutput, float>(target);
      }
    }
  }
  if constexpr (kOutput != Output::kCount) {
    if (problem.focal) return problem.compute_double ? focal_kernel<kOutput, double> : focal_kernel<kOutput, float>;
  }
  return problem.compute_double ? general_kernel<kOutput, double> : general_kernel<kOutput, float>;
}

Kernel kernel(const Problem& problem, Output output, bool is_plain) {
  switch (output) {
    case Output::kLossSum:
      return kernel<Output::kLossSum>(problem, is_plain);
    case Output::kLossSumAndGrad:
      return kernel<Output::kLossSumAndGrad>(problem, is_plain);
    case Output::kLoss:
      return kernel<Output::kLoss>(problem, is_plain);
    case Output::kCount:
      return kernel<Output::kCount>(problem, is_plain);
    case Output::kGradLogits:
      return kernel<Output::kGradLogits>(problem, is_plain);
    case Output::kGradTarget:
      return kernel<Output::kGradTarget>(problem, is_plain);
    case Output::kGradWeight:
      return kernel<Output::kGradWeight>(problem, is_plain);
    default:
      return kernel<Output::kGradPosWeight>(problem, is_plain);
  }
}

// Launches what the plan says. result: a scalar tensor for the outputs that have a sum.
void run(const Iteration& iteration, Output output, const Tensor& like, const OptionalTensor& count, double divisor,
         const Tensor* result, DType result_dtype) {
  const Plan p = plan(iteration.problem, output, multiprocessors());
  Launch launch = {};
  launch.problem = iteration.problem;
  launch.problem.scale = 1 / divisor;
  launch.divisor = divisor;
  launch.count = count.has_value() ? count->const_data_ptr<double>() : nullptr;
  launch.result = result != nullptr ? result->mutable_data_ptr() : nullptr;
  launch.result_dtype = result_dtype;
  Tensor partials;  // freed in stream order
  if (p.partials > 0) {
    partials = at::empty({p.partials}, like.options().dtype(at::kDouble));
    launch.partials = partials.mutable_data_ptr<double>();
  }
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (p.grid > 0) {
    kernel(iteration.problem, output, p.plain)<<<unsigned(p.grid), unsigned(p.block), 0, stream>>>(launch);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (p.finish) {
    finish_kernel<<<1, unsigned(kLanes), 0, stream>>>(launch);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

// What a mean is divided by: known here, or counted on the device where elements are masked out or ignored.
struct Divisor {
  OptionalTensor count;
  double value = 1;
};
Divisor divisor(const Iteration& iteration, const Arguments& arguments) {
  if (arguments.reduction != at::Reduction::Mean) return {};
  if (!arguments.selects()) return {std::nullopt, double(iteration.problem.numel)};
  const Tensor count = at::empty({}, arguments.logits.options().dtype(at::kDouble));
  run(iteration, Output::kCount, arguments.logits, std::nullopt, 1, &count, DType::kFloat64);
  return {count, 1};
}

Tensor scalar(const Tensor& like, at::ScalarType type) { return at::empty({}, like.options().dtype(type)); }

Tensor bce_cuda(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  const at::ScalarType type = loss_dtype(arguments, dtype);
  if (reduction == at::Reduction::None) {
    Tensor loss = iteration.allocate_out(type);
    run(iteration, Output::kLoss, logits, std::nullopt, 1, nullptr, DType::kFloat64);
    return loss;
  }
  const Divisor by = divisor(iteration, arguments);
  const Tensor loss = scalar(logits, type);
  run(iteration, Output::kLossSum, logits, by.count, by.value, &loss, dtype_of(type));
  return loss;
}

std::tuple<Tensor, Tensor> bce_with_grad_cuda(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  TORCH_CHECK_VALUE(reduction != at::Reduction::None, "bce_with_grad: expected reduction 1 (mean) or 2 (sum), got 0");
  const Divisor by = divisor(iteration, arguments);
  Tensor grad = iteration.allocate_out(logits.scalar_type());
  const at::ScalarType type = loss_dtype(arguments, dtype);
  const Tensor loss = scalar(logits, type);
  run(iteration, Output::kLossSumAndGrad, logits, by.count, by.value, &loss, dtype_of(type));
  return {loss, grad};
}

Tensor bce_backward_cuda(const Tensor& grad_output, FL_PARAMETERS, int64_t wrt, FL_FOCAL_PARAMETERS) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  TORCH_CHECK(at::is_expandable_to(grad_output.sizes(), logits.sizes()), "bce_backward: expected grad_output of a ",
              "shape that broadcasts to ", logits.sizes(), ", got ", grad_output.sizes());
  iteration.set_grad_output(grad_output);
  const Divisor by = divisor(iteration, arguments);
  const auto result = [&](Output output, const Tensor& like) {
    Tensor grad = iteration.allocate_out(like.scalar_type());
    run(iteration, output, logits, by.count, by.value, nullptr, DType::kFloat64);
    return grad;
  };
  switch (Wrt(wrt)) {
    case Wrt::kLogits:
      return result(Output::kGradLogits, logits);
    case Wrt::kTarget:
      return result(Output::kGradTarget, target);
    case Wrt::kWeight:
      return result(Output::kGradWeight, weight.value());
    case Wrt::kPosWeight:
      return result(Output::kGradPosWeight, pos_weight.value());
  }
  TORCH_CHECK_VALUE(false, "bce_backward: expected wrt between 0 and 3, got ", wrt);
  return {};
}

// Multiplies by a scalar tensor in place; the kernel touches nothing where the scalar is 1.
void scale_cuda(Tensor& self, const Tensor& factor) {
  const c10::cuda::CUDAGuard guard(self.device());
  if (self.numel() == 0) return;
  if (!factor.is_cuda() || factor.numel() != 1 || !self.is_non_overlapping_and_dense()) {
    self.mul_(factor);
    return;
  }
  const DType dtype = dtype_of(self.scalar_type());
  const unsigned grid = unsigned(scale_grid(self.numel(), dtype, multiprocessors()));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto launch = [&](auto* data) {
    scale_kernel<<<grid, kScaleBlock, 0, stream>>>(data, self.numel(), factor.const_data_ptr(),
                                                   dtype_of(factor.scalar_type()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  void* const data = self.mutable_data_ptr();
  if (dtype == DType::kFloat64) return launch(static_cast<double*>(data));
  if (dtype == DType::kFloat16) return launch(static_cast<Half*>(data));
  if (dtype == DType::kBFloat16) return launch(static_cast<BFloat16*>(data));
  launch(static_cast<float*>(data));
}

}  // namespace
}  // namespace fused_logistic

TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) {
  m.impl("bce", &fused_logistic::bce_cuda);
  m.impl("bce_with_grad", &fused_logistic::bce_with_grad_cuda);
  m.impl("bce_backward", &fused_logistic::bce_backward_cuda);
  m.impl("scale_", &fused_logistic::scale_cuda);
}
