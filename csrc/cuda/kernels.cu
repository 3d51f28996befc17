// Which kernel computes what; naming them here instantiates all of them. Torch-free: `nvcc -ptx -fmad=false kernels.cu`.
#include "kernels.cuh"

namespace fused_logistic {
namespace {

using Kernel = void (*)(const Launch);

// Which losses have typed kernels, and beside those of the target alone also those of options and weights: see plan().
template <class L>
constexpr bool kTypedPlain = !std::is_same_v<L, QualityLossOf<false>> && !std::is_same_v<L, AsymmetricLossOf<false>>;
template <class L>
constexpr bool kTypedAll =
    std::is_same_v<L, Bce> || std::is_same_v<L, FocalLossOf<false>> || std::is_same_v<L, FocalLossOf<true>>;

template <Output kOutput, class L, Terms kTerms, class Z>
Kernel typed(DType target) {
  constexpr bool kPlain = kTerms == Terms::kPlain, kBce = std::is_same_v<L, Bce>;
  if (target == kDType<Z>) return elements_kernel<kOutput, L, kTerms, Typed<Z, Types<Z>>>;
  if constexpr (kPlain && kBce) {
    if (target == DType::kUInt8) return elements_kernel<kOutput, L, kTerms, Typed<Z, Types<uint8_t>>>;
  }
  if constexpr (kPlain && !kBce) {
    return nullptr;
  } else {
    return elements_kernel<kOutput, L, kTerms, Typed<Z, OtherTargets<Z>>>;
  }
}

template <Output kOutput, class L, Terms kTerms>
Kernel kernel(const Problem& problem, bool is_typed) {
  if constexpr (has_plain_kernels(kOutput) && (kTerms == Terms::kPlain ? kTypedPlain<L> : kTypedAll<L>)) {
    if (is_typed) {
      const DType target = problem.target.dtype;
      switch (problem.logits.dtype) {
        case DType::kFloat16:
          return typed<kOutput, L, kTerms, Half>(target);
        case DType::kBFloat16:
          return typed<kOutput, L, kTerms, BFloat16>(target);
        case DType::kFloat32:
          return typed<kOutput, L, kTerms, float>(target);
        default:
          if constexpr (kTerms == Terms::kPlain && std::is_same_v<L, Bce>)
            return typed<kOutput, L, kTerms, double>(target);
      }
    }
  }
  if constexpr (kTerms == Terms::kPlain) {
    return nullptr;
  } else if constexpr (L::kWhole) {
    return elements_kernel<kOutput, L, kTerms, General<float>>;
  } else {
    return problem.compute_double ? elements_kernel<kOutput, L, kTerms, General<double>>
                                  : elements_kernel<kOutput, L, kTerms, General<float>>;
  }
}

template <Output kOutput>
Kernel kernel(const Problem& problem, const Plan& plan) {
  if constexpr (kOutput == Output::kCount) {
    return plan.typed ? elements_kernel<kOutput, Bce, Terms::kOptions, Counted>
                      : kernel<kOutput, Bce, Terms::kOptions>(problem, false);
  } else {
    if constexpr (has_plain_kernels(kOutput)) {
      if (plan.terms == Terms::kOptions) return kernel<kOutput, Bce, Terms::kOptions>(problem, plan.typed);
      if (plan.terms == Terms::kPlain) {
        return with_loss<true>(
            problem, [&](auto loss) { return kernel<kOutput, decltype(loss), Terms::kPlain>(problem, plan.typed); });
      }
    }
    return with_loss<has_plain_kernels(kOutput)>(
        problem, [&](auto loss) { return kernel<kOutput, decltype(loss), Terms::kAll>(problem, plan.typed); });
  }
}

Kernel kernel(const Problem& problem, Output output, const Plan& plan) {
  switch (output) {
    case Output::kLossSum:
      return kernel<Output::kLossSum>(problem, plan);
    case Output::kLossSumAndGrad:
      return kernel<Output::kLossSumAndGrad>(problem, plan);
    case Output::kLoss:
      return kernel<Output::kLoss>(problem, plan);
    case Output::kCount:
      return kernel<Output::kCount>(problem, plan);
    case Output::kGradLogits:
      return kernel<Output::kGradLogits>(problem, plan);
    case Output::kGradTarget:
      return kernel<Output::kGradTarget>(problem, plan);
    case Output::kGradWeight:
      return kernel<Output::kGradWeight>(problem, plan);
    default:
      return kernel<Output::kGradPosWeight>(problem, plan);
  }
}

}  // namespace

void launch_elements(const Launch& launch, Output output, const Plan& plan, cudaStream_t stream) {
  const Kernel chosen = kernel(launch.problem, output, plan);
  require(chosen != nullptr, "launch_elements", "the plan asks for a kernel that there is not");
  chosen<<<unsigned(plan.grid), unsigned(kThreads), 0, stream>>>(launch);
}

void launch_finish(const Launch& launch, cudaStream_t stream) {
  finish_kernel<<<1, unsigned(kLanes), 0, stream>>>(launch);
}

}  // namespace fused_logistic
