// gradient *= factor in one pass, and in none where the factor is 1. Torch-free, like kernels.cu.
#include "scale.h"

#include "access.cuh"

namespace fused_logistic {

template <class Z>
__global__ void __launch_bounds__(kScaleThreads) scale_kernel(const ScaleLaunch launch) {
  using C = typename Arithmetic<Z>::Type;
  C factor = 1;
  with_type(FloatingTypes{}, launch.factor_dtype, launch.factor, [&](auto* data) { factor = to_arithmetic<C>(*data); });
  if (factor == C(1)) return;
  // 0 may be of an element that is left out: no factor makes it anything else.
  const bool finite = factor - factor == 0;
  Z* const gradient = static_cast<Z*>(launch.gradient);
  const int64_t step = int64_t(gridDim.x) * kScaleThreads * kPerThread;
  for (int64_t i = (int64_t(blockIdx.x) * kScaleThreads + threadIdx.x) * kPerThread; i < launch.numel; i += step) {
    const int count = launch.numel - i < kPerThread ? int(launch.numel - i) : kPerThread;
    const bool whole = launch.aligned && count == kPerThread;
    C values[kPerThread];
    whole ? load_pack(gradient + i, values) : load_some(gradient + i, count, values);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      values[k] = finite || values[k] != C(0) ? values[k] * factor : values[k];
    }
    whole ? store_pack(gradient + i, values) : store_some(gradient + i, count, values);
  }
}

void launch_scale(const ScaleLaunch& launch, cudaStream_t stream) {
  const auto kernel = launch.dtype == DType::kFloat64   ? scale_kernel<double>
                      : launch.dtype == DType::kFloat32 ? scale_kernel<float>
                      : launch.dtype == DType::kFloat16 ? scale_kernel<Half>
                                                        : scale_kernel<BFloat16>;
  kernel<<<unsigned(scale_grid(launch)), unsigned(kScaleThreads), 0, stream>>>(launch);
}

}  // namespace fused_logistic
