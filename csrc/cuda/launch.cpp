// The CUDA entry points of the ops: device guard, current stream, memory from torch's allocator. Nothing waits for the
// device and nothing is read back, so that every op can be captured into a CUDA graph.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../composite.h"
#include "kernels.h"

namespace fused_logistic {
namespace {

int multiprocessors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
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
    launch_elements(launch, output, p, stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (p.finish) {
    launch_finish(launch, stream);
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
  check_reduced("bce_with_grad", reduction);
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
  iteration.set_grad_output(grad_output);
  const Divisor by = divisor(iteration, arguments);
  const auto [output, operand] = derivative(arguments, wrt);
  Tensor grad = iteration.allocate_out(operand.scalar_type());
  run(iteration, output, logits, by.count, by.value, nullptr, DType::kFloat64);
  return grad;
}

// Multiplies by a scalar tensor in place; the kernel touches nothing where the scalar is 1.
void scale_cuda(Tensor& self, const Tensor& factor) {
  const c10::cuda::CUDAGuard guard(self.device());
  if (self.numel() == 0) return;
  self.mul_(factor);
}

}  // namespace
}  // namespace fused_logistic

TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) {
  m.impl("bce", &fused_logistic::bce_cuda);
  m.impl("bce_with_grad", &fused_logistic::bce_with_grad_cuda);
  m.impl("bce_backward", &fused_logistic::bce_backward_cuda);
  m.impl("scale_", &fused_logistic::scale_cuda);
}
