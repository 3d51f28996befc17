// The logistic loss and its derivatives: the one place where the formula stands.
//
// Every function is a template on a value type V: float or double (scalar C++ and CUDA device code) or a SIMD vector of
// them (csrc/cpu/vec.h). Only exactly rounded operations are used (+ - * /, fma, comparison, selection, integer shift
// and add on the bits), no libm, nothing contracted by the compiler, so that every backend computes the same bits.
//
// Notation: logit z, target y, positive weight p, sample weight w;
//   a = w p y       weight of the positive term -log sigma(z)  = softplus(-z)
//   b = w (1 - y)   weight of the negative term -log sigma(-z) = softplus(z)
//   loss = a softplus(-z) + b softplus(z)
// With m = |z|, e = exp(-m), s = sigma(-m) = e / (1 + e), l = log1p(e):
//   sigma(m) = 1 - s, softplus(m) = m + l, softplus(-m) = l
// s and l are the small ones and are formed without a subtraction, so both tails keep all their digits.
// The derivation of each line, in mathematical notation: docs/derivation.md.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FL_FN static __host__ __device__ __forceinline__
#else
#define FL_FN static inline __attribute__((always_inline))
#endif

#include "coefficients.h"

namespace fused_logistic {

// ---- Value types -------------------------------------------------------------------------------------------------
// Value<V> is all that the formula needs to know of V beyond its operators; csrc/cpu/simd.h adds the vector types.

template <class To, class From>
FL_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class V>
struct Value;
template <>
struct Value<float> {
  using Scalar = float;
  using Bits = uint32_t;
  FL_FN float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
  FL_FN float select(bool condition, float x, float y) { return condition ? x : y; }
  FL_FN float at_least(float x, float low) { return x < low ? low : x; }
  FL_FN float add_term(float x, float y, float z) { return x == 0 ? z : fma(x, y, z); }
  FL_FN float splat(float x) { return x; }
  FL_FN uint32_t to_bits(float x) { return bit_cast<uint32_t>(x); }
  FL_FN float from_bits(uint32_t x) { return bit_cast<float>(x); }
};
template <>
struct Value<double> {
  using Scalar = double;
  using Bits = uint64_t;
  FL_FN double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
  FL_FN double select(bool condition, double x, double y) { return condition ? x : y; }
  FL_FN double at_least(double x, double low) { return x < low ? low : x; }
  FL_FN double add_term(double x, double y, double z) { return x == 0 ? z : fma(x, y, z); }
  FL_FN double splat(double x) { return x; }
  FL_FN uint64_t to_bits(double x) { return bit_cast<uint64_t>(x); }
  FL_FN double from_bits(uint64_t x) { return bit_cast<double>(x); }
};

template <class V>
FL_FN V fma(V x, V y, V z) {
  return Value<V>::fma(x, y, z);
}
template <class Mask, class V>
FL_FN V select(Mask condition, V x, V y) {
  return Value<V>::select(condition, x, y);
}
template <class V>
FL_FN V splat(typename Value<V>::Scalar x) {
  return Value<V>::splat(x);
}

// e / d, correctly rounded for d = 1 + e, from a start at most 1 ulp from 1 / d: an improved reciprocal, then the exact
// remainder's share. tests/exhaustive/formula_sweep.cpp checks every e in [0, 1] and every start up to 2 ulp away.
FL_FN float quotient_from(float start, float e, float d) {
  const float reciprocal = fma(fma(-d, start, 1.0f), start, start);
  const float guess = e * reciprocal;
  return fma(fma(-d, guess, e), reciprocal, guess);
}

// sigma(-m) = e / (1 + e), the division correctly rounded. On the GPU the division's slow path would be a third of the
// whole kernel; there the hardware's approximation of 1 / (1 + e), at most 1 ulp off by the PTX manual, is the start.
template <class V>
FL_FN V sigma_minus(V e) {
  return e / (splat<V>(1) + e);
}
FL_FN float sigma_minus(float e) {
  const float d = 1.0f + e;
#ifdef __CUDA_ARCH__
  float start;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(start) : "f"(d));
  return quotient_from(start, e, d);
#else
  return e / d;
#endif
}

// low where x is less, else x: NaN stays.
template <class V>
FL_FN V at_least(V x, V low) {
  return Value<V>::at_least(x, low);
}
// x y + z, where x = 0 gives z even if y is infinite: a term whose weight is 0 contributes nothing.
template <class V>
FL_FN V add_term(V x, V y, V z) {
  return Value<V>::add_term(x, y, z);
}
template <class V>
FL_FN V minus_absolute(V x) {
  return Value<V>::from_bits(Value<V>::to_bits(x) | Value<V>::to_bits(splat<V>(-0.0)));
}

// ---- Elementary functions ----------------------------------------------------------------------------------------

// c[0] + c[1] x + ... + c[N-1] x^(N-1) by Horner's rule in fma; Series is one of the coefficient lists in Coefficients.
template <class Series, class V>
FL_FN V polynomial(V x) {
  V sum = splat<V>(Series::at(Series::count - 1));
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = Series::count - 2; i >= 0; --i) sum = fma(sum, x, splat<V>(Series::at(i)));
  return sum;
}

// exp(x) for x <= 0, gradual underflow included; exp(-inf) = 0.
// x = n ln 2 + t with |t| <= ln 2 / 2 (ln 2 in two parts, Cody and Waite); exp(t) = 1 + t + t^2 q(t). 2^n is made of its
// bits, biased so that it and the product are normal numbers; undoing the bias is the only multiplication that rounds,
// and it does so only where the result is subnormal.
template <class V>
FL_FN V exp_nonpositive(V x) {
  using C = Coefficients<typename Value<V>::Scalar>;
  x = at_least(x, splat<V>(C::exp_lowest));
  const V shifter = splat<V>(C::exp_shifter);
  const V shifted = fma(x, splat<V>(C::log2_e), shifter);  // rounds to an integer in the low bits
  const V n = shifted - shifter;
  V t = fma(n, splat<V>(-C::ln2_high), x);
  t = fma(n, splat<V>(-C::ln2_low), t);
  const V p = fma(fma(polynomial<typename C::Exp>(t), t, splat<V>(1)), t, splat<V>(1));
  const V power = Value<V>::from_bits(Value<V>::to_bits(shifted) << C::mantissa_bits);  // 2^n / exp_unbias
  return p * power * splat<V>(C::exp_unbias);
}

// log1p(e) = e + e^2 q(e) for e in [0, 1].
template <class V>
FL_FN V log1p_unit(V e) {
  return fma(e * e, polynomial<typename Coefficients<typename Value<V>::Scalar>::Log1p>(e), e);
}

// ---- The logistic loss -------------------------------------------------------------------------------------------

// What the loss and all its derivatives share, per logit.
template <class V>
struct Logit {
  V z, minus_m, e;  // the logit, -|z|, exp(-|z|)
};
template <class V>
FL_FN Logit<V> logit(V z) {
  const V minus_m = minus_absolute(z);
  return {z, minus_m, exp_nonpositive(minus_m)};
}

// The weights a and b of the positive and the negative term, and their sum, which is exactly w where p is 1:
// 1 - y is off by at most 2^-25 (in fp32), so that y + (1 - y) rounds to 1.
template <class V>
struct TermWeights {
  V positive, negative, sum;
};
template <class V>
FL_FN TermWeights<V> term_weights(V y) {
  return {y, splat<V>(1) - y, splat<V>(1)};
}
template <class V>
FL_FN TermWeights<V> term_weights(V y, V p, V w) {
  const V opposite = splat<V>(1) - y;
  return {w * (p * y), w * opposite, w * fma(p, y, opposite)};
}

// loss = a softplus(-z) + b softplus(z) = (a + b) l + (z < 0 ? a : b) m
template <class V>
FL_FN V loss(const Logit<V>& logit, const TermWeights<V>& weights) {
  const V dominant = select(logit.z < splat<V>(0), weights.positive, weights.negative);
  return add_term(dominant, -logit.minus_m, weights.sum * log1p_unit(logit.e));
}

// d loss / dz = b sigma(z) - a sigma(-z) = sign(z) (dominant - (a + b) s), times factor (which takes the sign).
// In the tail of a target of 0 or 1, dominant is 0 where the gradient is small.
template <class V>
FL_FN V grad_logit(const Logit<V>& logit, const TermWeights<V>& weights, V factor) {
  const auto negative = logit.z < splat<V>(0);
  const V dominant = select(negative, weights.positive, weights.negative);
  return fma(-weights.sum, sigma_minus(logit.e), dominant) * select(negative, -factor, factor);
}

// d loss / dy = w (p softplus(-z) - softplus(z)) = w ((p - 1) l + (z < 0 ? p : -1) m): exactly -w z where p is 1
template <class V>
FL_FN V grad_target(const Logit<V>& logit, V p, V w) {
  const V slope = select(logit.z < splat<V>(0), p, splat<V>(-1));
  return add_term(w, add_term(slope, -logit.minus_m, (p - splat<V>(1)) * log1p_unit(logit.e)), splat<V>(0));
}

// d loss / dp = w y softplus(-z)
template <class V>
FL_FN V grad_pos_weight(const Logit<V>& logit, V y, V w) {
  const V softplus = select(logit.z < splat<V>(0), -logit.minus_m, splat<V>(0)) + log1p_unit(logit.e);
  return add_term(w * y, softplus, splat<V>(0));
}

// Label smoothing s moves the target towards 1/2: y (1 - s) + s / 2.
template <class V>
FL_FN V smooth(V y, typename Value<V>::Scalar s) {
  return fma(y, splat<V>(1 - s), splat<V>(s / 2));
}

}  // namespace fused_logistic
