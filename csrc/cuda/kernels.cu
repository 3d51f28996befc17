// Which kernel computes what; naming them here instantiates all of them. Torch-free: `nvcc -ptx -fmad=false kernels.cu`.
#include "kernels.cuh"

namespace fused_logistic {
namespace {

using Kernel = void (*)(const Launch);

template <Output kOutput, class Z>
Kernel typed(DType target) {
  if (target == DType::kUInt8) return typed_kernel<kOutput, Z, uint8_t>;
  if (target == DType::kInt64) return typed_kernel<kOutput, Z, int64_t>;
  if constexpr (sizeof(Z) == 2) {
    if (target == DType::kFloat32) return typed_kernel<kOutput, Z, float>;
  }
  return typed_kernel<kOutput, Z, Z>;
}

template <Output kOutput>
Kernel kernel(const Problem& problem, bool is_typed) {
  if constexpr (has_plain_kernels(kOutput)) {
    if (is_typed) {
      const DType target = problem.target.dtype;
      switch (problem.logits.dtype) {
        case DType::kFloat64:
          return typed<kOutput, double>(target);
        case DType::kFloat16:
          return typed<kOutput, Half>(target);
        case DType::kBFloat16:
          return typed<kOutput, BFloat16>(target);
        default:
          return typed<kOutput, float>(target);
      }
    }
  }
  // options or not: here they cost little beside the rest
  constexpr bool kHasUnweighted = has_plain_kernels(kOutput) || kOutput == Output::kCount;
  if constexpr (kHasUnweighted) {
    if (!has_weights(terms_of(problem, kOutput))) {
      return problem.compute_double ? general_kernel<kOutput, Bce, Terms::kOptions, double>
                                    : general_kernel<kOutput, Bce, Terms::kOptions, float>;
    }
  }
  if constexpr (kOutput == Output::kCount) {
    return nullptr;  // it has no weights
  } else {
    return with_loss(problem.options.loss, [&](auto loss) -> Kernel {
      using L = decltype(loss);
      return problem.compute_double ? general_kernel<kOutput, L, Terms::kAll, double>
                                    : general_kernel<kOutput, L, Terms::kAll, float>;
    });
  }
}

Kernel kernel(const Problem& problem, Output output, bool is_typed) {
  switch (output) {
    case Output::kLossSum:
      return kernel<Output::kLossSum>(problem, is_typed);
    case Output::kLossSumAndGrad:
      return kernel<Output::kLossSumAndGrad>(problem, is_typed);
    case Output::kLoss:
      return kernel<Output::kLoss>(problem, is_typed);
    case Output::kCount:
      return kernel<Output::kCount>(problem, is_typed);
    case Output::kGradLogits:
      return kernel<Output::kGradLogits>(problem, is_typed);
    case Output::kGradTarget:
      return kernel<Output::kGradTarget>(problem, is_typed);
    case Output::kGradWeight:
      return kernel<Output::kGradWeight>(problem, is_typed);
    default:
      return kernel<Output::kGradPosWeight>(problem, is_typed);
  }
}

}  // namespace

void launch_elements(const Launch& launch, Output output, const Plan& plan, cudaStream_t stream) {
  kernel(launch.problem, output, plan.typed)<<<unsigned(plan.grid), unsigned(plan.block), 0, stream>>>(launch);
}

void launch_finish(const Launch& launch, cudaStream_t stream) {
  finish_kernel<<<1, unsigned(kLanes), 0, stream>>>(launch);
}

}  // namespace fused_logistic
