// The operations that the interpreter must get right, bit for bit. kernel.cu compiles them for the GPU and executes
// them as PTX; reference.cpp compiles the same expressions for the CPU, whose arithmetic is independent of it.
//
// OP(expression) records one result as 64 bits; the text of the expression is its name in test reports.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include "device.h"
#else
#include "host.h"
#endif

#define OP(...) record(#__VA_ARGS__, uint64_t(__VA_ARGS__))

// Bits of a float in which all NaNs are one.
INLINE uint64_t bits(float value) {
  uint32_t raw;
  memcpy(&raw, &value, sizeof raw);
  return value != value ? 0x7fc00000u : raw;
}
INLINE uint64_t bits(double value) {
  uint64_t raw;
  memcpy(&raw, &value, sizeof raw);
  return value != value ? 0x7ff8000000000000ull : raw;
}
INLINE uint64_t bits(__half value) {
  uint16_t raw;
  memcpy(&raw, &value, sizeof raw);
  return (raw & 0x7fff) > 0x7c00 ? 0x7fff : raw;
}
INLINE uint64_t bits(__nv_bfloat16 value) {
  uint16_t raw;
  memcpy(&raw, &value, sizeof raw);
  return (raw & 0x7fff) > 0x7f80 ? 0x7fff : raw;
}
INLINE uint64_t bits(uint32_t raw) { return raw; }
INLINE uint64_t bits(int32_t raw) { return uint32_t(raw); }

// C++ leaves the sign of min(+0, -0) open.
INLINE uint64_t unsigned_if_equal(uint64_t raw, bool equal, uint64_t sign) { return equal ? raw & ~sign : raw; }

template <class T>
INLINE T from_raw(uint64_t raw) {
  T value;
  memcpy(&value, &raw, sizeof value);
  return value;
}

template <class Record>
INLINE void integer_operations(uint64_t A, uint64_t B, uint64_t C, Record& record) {
  const uint32_t ua = uint32_t(A), ub = uint32_t(B), uc = uint32_t(C);
  const int32_t a = int32_t(ua), b = int32_t(ub);
  const int64_t la = int64_t(A), lb = int64_t(B);
  OP(ua + ub);
  OP(ua - ub);
  OP(ua * ub);
  OP(bits(__mulhi(a, b)));
  OP(__umulhi(ua, ub));
  OP(int64_t(a) * b);
  OP(uint64_t(ua) * ub);
  OP(int64_t(a) * b + la);
  OP(bits(b ? (b == -1 ? int32_t(0 - ua) : a / b) : 0));
  OP(bits(b && b != -1 ? a % b : 0));
  OP(ub ? ua / ub : 0);
  OP(ub ? ua % ub : 0);
  OP(ua / 7 + ua % 10);
  OP(ua << (ub & 31));
  OP(bits(a >> (b & 31)));
  OP(ua >> (ub & 31));
  OP(shl_b32(ua, uc & 63));
  OP(shr_u32(ua, uc & 63));
  OP(bits(shr_s32(a, uc & 63)));
  OP(ua & ub);
  OP(ua | ~ub);
  OP(ua ^ ub ^ uc);
  OP((ua & ub) | (~ua & uc));
  OP((ua & ub) ^ (ua & uc) ^ (ub & uc));
  OP(bits(min(a, b)));
  OP(bits(max(a, b)));
  OP(min(ua, ub));
  OP(max(ua, ub));
  OP(bits(a < 0 ? 0 - ua : ua));
  OP(a < b ? 1 : 2);
  OP(ua < ub ? 1 : 2);
  OP(bits(__popc(ua)));
  OP(bits(__popcll(A)));
  OP(bits(__clz(a)));
  OP(bits(__clzll(la)));
  OP(__brev(ua));
  OP(__brevll(A));
  OP(__byte_perm(ua, ub, uc & 0x7777));
  OP(prmt(ua, ub, uc));
  OP(__funnelshift_l(ua, ub, uc));
  OP(__funnelshift_r(ua, ub, uc));
  OP(__funnelshift_lc(ua, ub, uc & 63));
  OP(__funnelshift_rc(ua, ub, uc & 63));
  OP(bfe_u32(ua, ub & 63, uc & 63));
  OP(bits(bfe_s32(a, ub & 63, uc & 63)));
  OP(bfe_s64(la, ub & 127, uc & 127));
  OP(bfi_b32(ua, ub, uc & 63, uc >> 8 & 63));
  OP(bfi_b64(A, B, uc & 127, uc >> 8 & 127));
  OP(bits(int32_t(int16_t(a))));
  OP(bits(int32_t(int8_t(a))));
  OP(uint8_t(a));
  OP(uint16_t(a));
  OP(int64_t(a));
  OP(uint64_t(ua));
  OP((ua >> 5) & 63);
  OP(bits(int32_t(ua << 9) >> 20));
  OP(A + B);
  OP(A - B);
  OP(A * B);
  OP(__mul64hi(la, lb));
  OP(__umul64hi(A, B));
  OP(A / 7 + A % 10);
  OP(lb && lb != -1 ? la / lb : 0);
  OP(lb && lb != -1 ? la % lb : 0);
  OP(B ? A / B : 0);
  OP(B ? A % B : 0);
  OP(A << (B & 63));
  OP(la >> (B & 63));
  OP(A >> (B & 63));
  OP(A & ~B);
  OP(la < lb);
  OP(A < B);
  OP(min(la, lb));
  OP(max(A, B));
  OP(uint16_t(uint16_t(a) * uint16_t(b)));
  OP(bits(int32_t(int16_t(int16_t(a) + int16_t(b)))));
  OP(int16_t(a) < int16_t(b));
}

template <class Record>
INLINE void float_operations(float a, float b, float c, Record& record) {
  OP(bits(a + b));
  OP(bits(a - b));
  OP(bits(a * b));
  OP(bits(a / b));
  OP(bits(fmaf(a, b, c)));
  OP(bits(fmaf(-a, b, -c)));
  OP(bits(fmaf(a, b, -(a * b))));
  OP(bits(sqrtf(a)));
  OP(bits(1.0f / b));
  OP(bits(__fadd_rd(a, b)));
  OP(bits(__fadd_ru(a, b)));
  OP(bits(__fadd_rz(a, b)));
  OP(bits(__fmul_rd(a, b)));
  OP(bits(__fmul_ru(a, b)));
  OP(bits(__fmul_rz(a, b)));
  OP(bits(__fmaf_rd(a, b, c)));
  OP(bits(__fmaf_ru(a, b, c)));
  OP(bits(__fmaf_rz(a, b, c)));
  OP(unsigned_if_equal(bits(fminf(a, b)), a == b, 1u << 31));
  OP(unsigned_if_equal(bits(fmaxf(a, b)), a == b, 1u << 31));
  OP(bits(fabsf(a)));
  OP(bits(-a));
  OP(bits(copysignf(a, b)));
  OP(a < b);
  OP(a <= b);
  OP(a > b);
  OP(a >= b);
  OP(a == b);
  OP(a != b);
  OP(!(a < b));
  OP(!(a <= b));
  OP(!(a > b));
  OP(!(a >= b));
  OP(a < b || a > c);
  OP(a != a);
  OP(fabsf(a) > 3.4e38f);
  OP(bits(a > b ? 1.0f : 0.0f));
  OP(bits(__float2int_rz(a)));
  OP(bits(__float2int_rn(a)));
  OP(bits(__float2int_rd(a)));
  OP(bits(__float2int_ru(a)));
  OP(__float2uint_rz(a));
  OP(__float2ll_rz(a));
  OP(__float2ull_rz(a));
  OP(bits(rintf(a)));
  OP(bits(floorf(a)));
  OP(bits(ceilf(a)));
  OP(bits(truncf(a)));
  OP(bits(__saturatef(a)));
  OP(bits(double(a)));
  OP(bits(__float2half_rn(a)));
  OP(bits(__float2half_rz(a)));
  OP(bits(__float2bfloat16_rn(a)));
  OP(bits(__float2bfloat16_rz(a)));
  OP(from_pair(__floats2half2_rn(a, b)));
  OP(from_pair(__floats2bfloat162_rn(a, b)));
}

template <class Record>
INLINE void double_operations(double a, double b, double c, int64_t i, Record& record) {
  OP(bits(a + b));
  OP(bits(a - b));
  OP(bits(a * b));
  OP(bits(a / b));
  OP(bits(fma(a, b, c)));
  OP(bits(fma(a, b, -(a * b))));
  OP(bits(sqrt(a)));
  OP(bits(1.0 / b));
  OP(bits(float(a)));
  OP(bits(__double2float_rz(a)));
  OP(bits(__double2float_rd(a)));
  OP(bits(__double2float_ru(a)));
  OP(a < b);
  OP(!(a < b));
  OP(a == b);
  OP(bits(rint(a)));
  OP(bits(floor(a)));
  OP(__double2ll_rn(a));
  OP(__double2ull_rz(a));
  OP(bits(__double2int_rz(a)));
  OP(bits(double(i)));
  OP(bits(float(i)));
  OP(bits(float(uint64_t(i))));
  OP(bits(double(uint64_t(i))));
  OP(bits(float(int32_t(i))));
  OP(bits(float(uint32_t(i))));
  OP(bits(double(int32_t(i))));
  OP(unsigned_if_equal(bits(fmin(a, b)), a == b, 1ull << 63));
  OP(unsigned_if_equal(bits(fmax(a, b)), a == b, 1ull << 63));
  OP(bits(fabs(a)));
  OP(bits(-a));
  OP(bits(__double2half(a)));
}

template <class Record>
INLINE void half_operations(uint64_t A, uint64_t B, uint64_t C, Record& record) {
  const __half a = from_raw<__half>(A), b = from_raw<__half>(B), c = from_raw<__half>(C);
  OP(bits(__half2float(a)));
  OP(bits(__hadd(a, b)));
  OP(bits(__hsub(a, b)));
  OP(bits(__hmul(a, b)));
  OP(bits(__hfma(a, b, c)));
  OP(bits(__hneg(a)));
  OP(__hlt(a, b));
  OP(__heq(a, b));
  OP(__hge(a, b));
  const __nv_bfloat16 p = from_raw<__nv_bfloat16>(A >> 16), q = from_raw<__nv_bfloat16>(B >> 16),
                      r = from_raw<__nv_bfloat16>(C >> 16);
  OP(bits(__bfloat162float(p)));
  OP(bits(__hadd(p, q)));
  OP(bits(__hsub(p, q)));
  OP(bits(__hmul(p, q)));
  OP(bits(__hfma(p, q, r)));
  OP(bits(__hneg(p)));
  OP(__hlt(p, q));
}
