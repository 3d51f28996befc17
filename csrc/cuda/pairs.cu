// Which kernel computes a tile of pairs. Torch-free, like kernels.cu.
#include "pairs.cuh"

namespace fused_logistic {
namespace {

using Kernel = void (*)(const PairsLaunch);

Kernel kernel(const Pairs& tile) {
  const bool in_double = tile.dtype == DType::kFloat64;
  if (tile.grad == nullptr) return in_double ? pairs_kernel<false, double, double> : pairs_kernel<false, float, float>;
  switch (tile.grad_dtype) {
    case DType::kFloat16:
      return pairs_kernel<true, float, Half>;
    case DType::kBFloat16:
      return pairs_kernel<true, float, BFloat16>;
    default:
      return in_double ? pairs_kernel<true, double, double> : pairs_kernel<true, float, float>;
  }
}

}  // namespace

void launch_pairs(const PairsLaunch& launch, cudaStream_t stream) {
  kernel(launch.tile)<<<unsigned(chunks(launch.tile.numel)), unsigned(kThreads), 0, stream>>>(launch);
  finish_pairs_kernel<<<unsigned(kPairSums), unsigned(kLanes), 0, stream>>>(launch);
}

}  // namespace fused_logistic
