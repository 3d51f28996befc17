// What operations.h needs on the CPU: the CUDA intrinsics in plain C++, written from their documentation.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>

#define INLINE static inline

using std::max;
using std::min;

// ---- directed rounding: the FPU's own modes; volatile keeps the operation between the two fesetround
enum class Operation { add, multiply, fma };
INLINE float directed(int mode, Operation operation, float a, float b, float c = 0) {
  std::fesetround(mode);
  volatile float x = a, y = b, z = c, result = 0;
  switch (operation) {
    case Operation::add:
      result = x + y;
      break;
    case Operation::multiply:
      result = x * y;
      break;
    case Operation::fma:
      result = std::fmaf(x, y, z);
      break;
  }
  std::fesetround(FE_TONEAREST);
  return result;
}
INLINE float __fadd_rd(float a, float b) { return directed(FE_DOWNWARD, Operation::add, a, b); }
INLINE float __fadd_ru(float a, float b) { return directed(FE_UPWARD, Operation::add, a, b); }
INLINE float __fadd_rz(float a, float b) { return directed(FE_TOWARDZERO, Operation::add, a, b); }
INLINE float __fmul_rd(float a, float b) { return directed(FE_DOWNWARD, Operation::multiply, a, b); }
INLINE float __fmul_ru(float a, float b) { return directed(FE_UPWARD, Operation::multiply, a, b); }
INLINE float __fmul_rz(float a, float b) { return directed(FE_TOWARDZERO, Operation::multiply, a, b); }
INLINE float __fmaf_rd(float a, float b, float c) { return directed(FE_DOWNWARD, Operation::fma, a, b, c); }
INLINE float __fmaf_ru(float a, float b, float c) { return directed(FE_UPWARD, Operation::fma, a, b, c); }
INLINE float __fmaf_rz(float a, float b, float c) { return directed(FE_TOWARDZERO, Operation::fma, a, b, c); }

INLINE float narrowed(int mode, double value) {
  std::fesetround(mode);
  volatile double from = value;
  volatile float result = float(from);
  std::fesetround(FE_TONEAREST);
  return result;
}
INLINE float __double2float_rz(double value) { return narrowed(FE_TOWARDZERO, value); }
INLINE float __double2float_rd(double value) { return narrowed(FE_DOWNWARD, value); }
INLINE float __double2float_ru(double value) { return narrowed(FE_UPWARD, value); }

// ---- float to integer: out of range gives the nearest limit. NaN gives the sign bit if the source is a double or the
// result has 64 bits, else 0, as the PTX manual says of cvt; an H200 gives the same.
template <class Integer, class Float>
INLINE Integer converted(Float value, Float (*rounded)(Float)) {
  using limits = std::numeric_limits<Integer>;
  constexpr uint64_t sign_bit = 1ull << (8 * sizeof(Integer) - 1);
  if (value != value) return sizeof(Float) == 8 || sizeof(Integer) == 8 ? Integer(sign_bit) : 0;
  const double integer = rounded(value);
  if (integer <= double(limits::min())) return limits::min();
  return integer >= double(limits::max()) ? limits::max() : Integer(integer);
}
INLINE int32_t __float2int_rz(float value) { return converted<int32_t>(value, std::trunc); }
INLINE int32_t __float2int_rn(float value) { return converted<int32_t>(value, std::nearbyint); }
INLINE int32_t __float2int_rd(float value) { return converted<int32_t>(value, std::floor); }
INLINE int32_t __float2int_ru(float value) { return converted<int32_t>(value, std::ceil); }
INLINE uint32_t __float2uint_rz(float value) { return converted<uint32_t>(value, std::trunc); }
INLINE int64_t __float2ll_rz(float value) { return converted<int64_t>(value, std::trunc); }
INLINE uint64_t __float2ull_rz(float value) { return converted<uint64_t>(value, std::trunc); }
INLINE int64_t __double2ll_rn(double value) { return converted<int64_t>(value, std::nearbyint); }
INLINE uint64_t __double2ull_rz(double value) { return converted<uint64_t>(value, std::trunc); }
INLINE int32_t __double2int_rz(double value) { return converted<int32_t>(value, std::trunc); }
INLINE float __saturatef(float value) { return value > 0 ? (value > 1 ? 1.f : value) : 0.f; }

// ---- integers
INLINE int __popc(uint32_t a) { return __builtin_popcount(a); }
INLINE int __popcll(uint64_t a) { return __builtin_popcountll(a); }
INLINE int __clz(int32_t a) { return a ? __builtin_clz(uint32_t(a)) : 32; }
INLINE int __clzll(int64_t a) { return a ? __builtin_clzll(uint64_t(a)) : 64; }
INLINE uint64_t __brevll(uint64_t a) {
  uint64_t result = 0;
  for (int i = 0; i < 64; ++i) result |= (a >> i & 1) << (63 - i);
  return result;
}
INLINE uint32_t __brev(uint32_t a) { return uint32_t(__brevll(a) >> 32); }
INLINE int32_t __mulhi(int32_t a, int32_t b) { return int32_t((int64_t(a) * b) >> 32); }
INLINE uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
INLINE int64_t __mul64hi(int64_t a, int64_t b) { return int64_t((__int128(a) * b) >> 64); }
INLINE uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t(((unsigned __int128)(a)*b) >> 64); }

INLINE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t source = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> (4 * i) & 15;
    uint32_t byte = uint32_t(source >> (8 * (choice & 7)) & 255);
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
INLINE uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return prmt(a, b, selector); }

INLINE uint32_t shl_b32(uint32_t a, uint32_t by) { return by > 31 ? 0 : a << by; }
INLINE uint32_t shr_u32(uint32_t a, uint32_t by) { return by > 31 ? 0 : a >> by; }
INLINE int32_t shr_s32(int32_t a, uint32_t by) { return a >> std::min(by, 31u); }
INLINE uint64_t joined(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }
INLINE uint32_t __funnelshift_lc(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t(joined(low, high) >> (32 - std::min(by, 32u)));
}
INLINE uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t(joined(low, high) >> std::min(by, 32u));
}
INLINE uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
  return __funnelshift_lc(low, high, by & 31);
}
INLINE uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return __funnelshift_rc(low, high, by & 31);
}

// Bit by bit, as the PTX manual defines them.
template <class Unsigned>
INLINE Unsigned extracted(Unsigned a, uint32_t start, uint32_t length, bool is_signed) {
  const uint32_t width = 8 * sizeof a;
  const bool sign = is_signed && length && (a >> std::min(start + length - 1, width - 1) & 1);
  Unsigned result = 0;
  for (uint32_t i = 0; i < width; ++i) {
    const bool inside = i < length && start + i < width;
    if (inside ? bool(a >> (start + i) & 1) : sign) result |= Unsigned(1) << i;
  }
  return result;
}
INLINE uint32_t bfe_u32(uint32_t a, uint32_t start, uint32_t length) { return extracted(a, start, length, false); }
INLINE int32_t bfe_s32(int32_t a, uint32_t start, uint32_t length) {
  return int32_t(extracted(uint32_t(a), start, length, true));
}
INLINE int64_t bfe_s64(int64_t a, uint32_t start, uint32_t length) {
  return int64_t(extracted(uint64_t(a), start, length, true));
}
template <class Unsigned>
INLINE Unsigned inserted(Unsigned field, Unsigned into, uint32_t start, uint32_t length) {
  for (uint32_t i = 0; i < length && start + i < 8 * sizeof field; ++i) {
    const Unsigned bit = Unsigned(1) << (start + i);
    into = field >> i & 1 ? into | bit : into & ~bit;
  }
  return into;
}
INLINE uint32_t bfi_b32(uint32_t field, uint32_t into, uint32_t start, uint32_t length) {
  return inserted(field, into, start, length);
}
INLINE uint64_t bfi_b64(uint64_t field, uint64_t into, uint32_t start, uint32_t length) {
  return inserted(field, into, start, length);
}

// ---- 16-bit floats: fma with one rounding. 113 bits hold the exact half result.
INLINE __half __hfma(__half a, __half b, __half c) {
  const _Float16 rounded = _Float16((__float128)__half2float(a) * __half2float(b) + __half2float(c));
  __half result;
  memcpy(&result, &rounded, sizeof result);
  return result;
}

// The exponents of bf16 lie further apart than 113 bits: of a far smaller addend a sticky bit is enough. The sum is
// rounded to odd in float, so that the rounding to bf16 is the only one that counts.
INLINE __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  const __float128 product = (__float128)__bfloat162float(a) * __bfloat162float(b), addend = __bfloat162float(c);
  const __float128 p = product < 0 ? -product : product, z = addend < 0 ? -addend : addend, sticky = 0x1p-90;
  __float128 sum = product + addend;
  if (z != 0 && p * sticky > z) sum = product + (addend < 0 ? -p : p) * sticky;
  if (p != 0 && z * sticky > p && z < 1e39) sum = addend + (product < 0 ? -z : z) * sticky;
  float result = float(sum);
  uint32_t raw;
  memcpy(&raw, &result, sizeof raw);
  if (sum == sum && !std::isinf(result) && (__float128)result != sum && !(raw & 1)) {
    const __float128 magnitude = sum < 0 ? -sum : sum;
    raw += magnitude > (__float128)std::fabs(result) ? 1 : -1;
  }
  memcpy(&result, &raw, sizeof result);
  return __float2bfloat16_rn(result);
}

INLINE uint64_t bits(__half value);
INLINE uint64_t bits(__nv_bfloat16 value);
INLINE uint64_t from_pair(__half2 pair) { return bits(pair.x) << 16 | bits(pair.y); }
INLINE uint64_t from_pair(__nv_bfloat162 pair) { return bits(pair.x) << 16 | bits(pair.y); }
