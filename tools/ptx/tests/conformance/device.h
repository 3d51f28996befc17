// What operations.h needs on the GPU: instructions that no C++ expression gives for certain.
#pragma once

#define INLINE static __device__ __forceinline__

#define ASM_SHIFT(name, instruction, R, in)                           \
  INLINE R name(R a, uint32_t b) {                                    \
    R result;                                                         \
    asm(instruction " %0, %1, %2;" : "=" in(result) : in(a), "r"(b)); \
    return result;                                                    \
  }
#define ASM_FIELD(name, instruction, R, in)                                                \
  INLINE R name(R a, uint32_t start, uint32_t length) {                                    \
    R result;                                                                              \
    asm(instruction " %0, %1, %2, %3;" : "=" in(result) : in(a), "r"(start), "r"(length)); \
    return result;                                                                         \
  }
#define ASM_INSERT(name, instruction, R, in)                                                                 \
  INLINE R name(R field, R into, uint32_t start, uint32_t length) {                                          \
    R result;                                                                                                \
    asm(instruction " %0, %1, %2, %3, %4;" : "=" in(result) : in(field), in(into), "r"(start), "r"(length)); \
    return result;                                                                                           \
  }

ASM_SHIFT(shl_b32, "shl.b32", uint32_t, "r")
ASM_SHIFT(shr_u32, "shr.u32", uint32_t, "r")
ASM_SHIFT(shr_s32, "shr.s32", int32_t, "r")
ASM_FIELD(bfe_u32, "bfe.u32", uint32_t, "r")
ASM_FIELD(bfe_s32, "bfe.s32", int32_t, "r")
ASM_FIELD(bfe_s64, "bfe.s64", int64_t, "l")
ASM_INSERT(bfi_b32, "bfi.b32", uint32_t, "r")
ASM_INSERT(bfi_b64, "bfi.b64", uint64_t, "l")

INLINE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

INLINE uint64_t bits(__half value);
INLINE uint64_t bits(__nv_bfloat16 value);
INLINE uint64_t from_pair(__half2 pair) { return bits(pair.x) << 16 | bits(pair.y); }
INLINE uint64_t from_pair(__nv_bfloat162 pair) { return bits(pair.x) << 16 | bits(pair.y); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// bf16 has no fma before sm_80; the test leaves this operation out there.
INLINE __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16, __nv_bfloat16) { return a; }
#endif
