// A few kernels of tiles: what the tests look at in SASS.
#include "../csrc/cuda/tile.cuh"

namespace fused_logistic {

template <class Z>
using Same = Typed<Z, Types<Z>>;
constexpr Output kBoth = Output::kLossSumAndGrad;

template __global__ void tile_kernel<kBoth, Bce, Terms::kPlain, Same<float>, false>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kPlain, Same<Half>, false>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kPlain, Same<BFloat16>, false>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kPlain, Same<float>, true>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kPlain, Same<BFloat16>, true>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kOptions, Same<float>, false>(const TileLaunch);
template __global__ void tile_kernel<kBoth, Bce, Terms::kOptions, Typed<BFloat16, OtherTargets<BFloat16>>, false>(
    const TileLaunch);

}  // namespace fused_logistic
