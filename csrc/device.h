// What only NVIDIA's instructions can say: all of the kernels' PTX, and all that they know of warps.
#pragma once
#include <stdint.h>

#include <type_traits>

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
template <class X>
FL_DEVICE X from_later_thread(X x, int distance) {
  return __shfl_down_sync(0xffffffffu, x, distance);
}

// ---- Copies to shared memory that a thread does not wait for -----------------------------------------------------

// `count` bytes and zeros up to kBytes, 4, 8 or 16, both addresses being multiples of that; before sm_80: at once.
template <int kBytes>
FL_DEVICE void copy_async(void* shared, const void* global, int count) {
#if __CUDA_ARCH__ >= 800
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(global), "r"(count) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;"
                 :
                 : "r"(to), "l"(global), "r"(count), "n"(kBytes)
                 : "memory");
  }
#else
  using Chunk = std::conditional_t<kBytes == 16, uint4, std::conditional_t<kBytes == 8, uint2, uint32_t>>;
  if (count == kBytes) {
    *static_cast<Chunk*>(shared) = *static_cast<const Chunk*>(global);
    return;
  }
  for (int i = 0; i < kBytes; i += 2) {
    static_cast<uint16_t*>(shared)[i / 2] = i < count ? static_cast<const uint16_t*>(global)[i / 2] : uint16_t(0);
  }
#endif
}
// The copies since the last call are a group.
FL_DEVICE void end_group() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}
// Until all of this thread's groups but the last kPending are there.
template <int kPending>
FL_DEVICE void wait_for_groups() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
#endif
}

}  // namespace fused_logistic
