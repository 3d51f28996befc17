// Which kernel computes what; naming them here instantiates all of them. Torch-free: `nvcc -ptx -fmad=false kernels.cu`.
#include "kernels.cuh"

namespace fused_logistic {
namespace {

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

}  // namespace

void launch_elements(const Launch& launch, Output output, const Plan& plan, cudaStream_t stream) {
  kernel(launch.problem, output, plan.plain)<<<unsigned(plan.grid), unsigned(plan.block), 0, stream>>>(launch);
}

void launch_finish(const Launch& launch, cudaStream_t stream) {
  finish_kernel<<<1, unsigned(kLanes), 0, stream>>>(launch);
}

void launch_scale(void* data, DType dtype, int64_t numel, const void* factor, DType factor_dtype, int64_t grid,
                  cudaStream_t stream) {
  const auto start = [&](auto* of_type) {
    scale_kernel<<<unsigned(grid), kScaleBlock, 0, stream>>>(of_type, numel, factor, factor_dtype);
  };
  if (dtype == DType::kFloat64) return start(static_cast<double*>(data));
  if (dtype == DType::kFloat16) return start(static_cast<Half*>(data));
  if (dtype == DType::kBFloat16) return start(static_cast<BFloat16*>(data));
  start(static_cast<float*>(data));
}

}  // namespace fused_logistic
