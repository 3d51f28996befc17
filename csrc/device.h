// What only NVIDIA's instructions can say: all of the kernels' PTX, and all that they know of warps.
#pragma once
#include <stdint.h>

namespace fused_logistic {

#define FL_DEVICE static __device__ __forceinline__

// ---- Numbers -----------------------------------------------------------------------------------------------------

// 1 / x, at most 1 ulp off (by the PTX manual), for normal x and 1 / x. GPUs may differ in it.
FL_DEVICE float approximate_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// fp16 and bf16 are their bits. To them: rounded to nearest even, each NaN to one.
FL_DEVICE float half_to_float(uint16_t half) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half));
  return result;
}
FL_DEVICE uint16_t float_to_half(float x) {
  uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(x));
  return result;
}
FL_DEVICE uint16_t float_to_bfloat16(float x) {
#if __CUDA_ARCH__ >= 800
  uint16_t result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(x));
  return result;
#else
  const uint32_t bits = __float_as_uint(x);
  return x == x ? uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t(0x7fc0u);
#endif
}

// ---- Threads -----------------------------------------------------------------------------------------------------

constexpr int kWarpSize = 32;

// x of the thread that is `distance` further on in the warp. All threads of the warp take part.
FL_DEVICE double from_later_thread(double x, int distance) { return __shfl_down_sync(0xffffffffu, x, distance); }

}  // namespace fused_logistic
