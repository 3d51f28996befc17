// Which kernel computes which tile; naming them here instantiates all of them. Torch-free, as kernels.cu.
#include "tile.cuh"

namespace fused_logistic {
namespace {

using Kernel = void (*)(const TileLaunch);
constexpr Output kBoth = Output::kLossSumAndGrad;

template <Terms kTerms, class Z>
Kernel typed(DType target, bool sparse) {
  if (sparse) return tile_kernel<kBoth, Bce, kTerms, Typed<Z, Types<Z>>, true>;
  if (target == kDType<Z>) return tile_kernel<kBoth, Bce, kTerms, Typed<Z, Types<Z>>, false>;
  if constexpr (kTerms == Terms::kPlain) {
    if (target == DType::kUInt8) return tile_kernel<kBoth, Bce, kTerms, Typed<Z, Types<uint8_t>>, false>;
  }
  return tile_kernel<kBoth, Bce, kTerms, Typed<Z, OtherTargets<Z>>, false>;
}

template <Terms kTerms>
Kernel typed(const Problem& problem, bool sparse) {
  const DType target = problem.target.dtype;
  switch (problem.logits.dtype) {
    case DType::kFloat16:
      return typed<kTerms, Half>(target, sparse);
    case DType::kBFloat16:
      return typed<kTerms, BFloat16>(target, sparse);
    case DType::kFloat32:
      return typed<kTerms, float>(target, sparse);
    default:
      if constexpr (kTerms == Terms::kPlain) return typed<kTerms, double>(target, sparse);
      return nullptr;
  }
}

template <Output kOutput, class L, Terms kTerms>
Kernel general(const Problem& problem) {
  if constexpr (L::kWhole) {
    return tile_kernel<kOutput, L, kTerms, General<float>, true>;
  } else {
    return problem.compute_double ? tile_kernel<kOutput, L, kTerms, General<double>, true>
                                  : tile_kernel<kOutput, L, kTerms, General<float>, true>;
  }
}

template <Output kOutput>
Kernel general(const Problem& problem, Terms terms) {
  if (terms == Terms::kOptions) return general<kOutput, Bce, Terms::kOptions>(problem);
  return with_loss<true>(problem, [&](auto loss) { return general<kOutput, decltype(loss), Terms::kAll>(problem); });
}

Kernel kernel(const TileLaunch& launch, const TilePlan& plan) {
  const Problem& problem = launch.problem;
  const bool sparse = launch.crow_indices != nullptr;
  if (plan.typed) {
    if (plan.terms == Terms::kPlain) return typed<Terms::kPlain>(problem, sparse);
    if (plan.terms == Terms::kOptions) return typed<Terms::kOptions>(problem, sparse);
    return typed<Terms::kAll>(problem, sparse);
  }
  if (plan.output == kBoth) return general<kBoth>(problem, plan.terms);
  if (plan.output == Output::kLoss) return general<Output::kLoss>(problem, plan.terms);
  return general<Output::kGradLogits>(problem, plan.terms);
}

}  // namespace

void launch_tile(const TileLaunch& launch, const TilePlan& plan, CUstream_st* stream) {
  kernel(launch, plan)<<<unsigned(tile_grid(launch)), unsigned(kTileThreads), 0, stream>>>(launch);
}

void launch_finish_tile(const TileLaunch& launch, CUstream_st* stream) {
  const auto finish = launch.problem.compute_double ? finish_tile_kernel<double> : finish_tile_kernel<float>;
  finish<<<unsigned(finish_tile_grid(launch)), unsigned(kLanes), 0, stream>>>(launch);
}

}  // namespace fused_logistic
