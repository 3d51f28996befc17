// The logistic loss and its derivatives: the one place where the formula stands.
//
// Every function is a template on a value type V: float or double (scalar C++ and CUDA device code) or a SIMD vector of
// them (csrc/cpu/simd.h). Only exactly rounded operations are used (+ - * /, fma, comparison, selection, integer shift
// and arithmetic on the bits), no libm, nothing contracted by the compiler, so that every backend computes the same bits.
//
// Notation: logit z, target y, positive weight p, sample weight w;
//   a = w p y       weight of the positive term -log sigma(z)  = softplus(-z)
//   b = w (1 - y)   weight of the negative term -log sigma(-z) = softplus(z)
//   loss = a softplus(-z) + b softplus(z)
// With m = |z|, e = exp(-m), s = sigma(-m) = e / (1 + e), l = log1p(e):
//   sigma(m) = 1 - s, softplus(m) = m + l, softplus(-m) = l
// s and l are the small ones and are formed without a subtraction, so both tails keep all their digits.
// The derivation of each line, in mathematical notation: docs/derivation.md.
//
// "At most ... ulp" above a function bounds its error, seen over every float or a dense sample, in units in the last
// place of the exact result for the arguments as they are; of something larger where the comment says so, as the result
// may cancel. Where an element is concerned y is in [0, 1], p and w are >= 0, and no product of them is subnormal or
// infinite. tests/test_formula_exhaustive.py reads these lines and measures.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FL_METHOD __host__ __device__ __forceinline__
#define FL_RARE_FN static FL_METHOD
#else
#define FL_METHOD inline __attribute__((always_inline))
#define FL_RARE_FN static __attribute__((noinline))  // what is rarely computed, or slow anyway: a third less to compile
#endif
#define FL_FN static FL_METHOD

#include "coefficients.h"
#ifdef __CUDACC__
#include "device.h"
#endif

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
  FL_FN bool any(bool mask) { return mask; }
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
  FL_FN bool any(bool mask) { return mask; }
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

// At most 1.5 (float) and 1.5 (double) ulp for e in [0, 1].
// sigma(-m) = e / (1 + e), the division correctly rounded. On the GPU the division's slow path would be a third of the
// whole kernel; there the hardware's approximation of 1 / (1 + e) is the start.
template <class V>
FL_FN V sigma_minus(V e) {
  return e / (splat<V>(1) + e);
}
FL_FN float sigma_minus(float e) {
  const float d = 1.0f + e;
#ifdef __CUDA_ARCH__
  return quotient_from(approximate_reciprocal(d), e, d);
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
template <class V>
FL_FN V unless_nan(V x, V otherwise) {
  return select(x == x, x, otherwise);
}
// x y, where 0 times infinity is 0: what has no weight has none, however large the other factor. NaN stays.
template <class V>
FL_FN V product(V x, V y) {
  const V xy = x * y;
  return select((xy == xy) | (x != x) | (y != y), xy, splat<V>(0));
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

// x 2^n, rounded where it is subnormal. 2^n is made of its bits, the low ones of `shifted`, biased so that it and the product
// are normal numbers; undoing the bias is the only multiplication that rounds. AVX-512 has an instruction that does all this.
template <class V>
FL_FN V times_power_of_two(V x, V shifted) {
  using C = Coefficients<typename Value<V>::Scalar>;
  if constexpr (requires { Value<V>::scale(x, shifted); }) {
    return Value<V>::scale(x, shifted - splat<V>(C::exp_shifter));
  } else {
    const V power = Value<V>::from_bits(Value<V>::to_bits(shifted) << C::mantissa_bits);  // 2^n / exp_unbias
    return x * power * splat<V>(C::exp_unbias);
  }
}
// 2^n (1 + t + t^2 q(t))
template <class V>
FL_FN V exp_reduced(V shifted, V t) {
  using C = Coefficients<typename Value<V>::Scalar>;
  const V p = fma(fma(polynomial<typename C::Exp>(t), t, splat<V>(1)), t, splat<V>(1));
  return times_power_of_two(p, shifted);
}

// At most 0.9 (float) and 0.9 (double) ulp for x <= 0, subnormal results included; exp(-inf) = 0.
// exp(x):
// x = n ln 2 + t with |t| <= ln 2 / 2 (ln 2 in two parts, Cody and Waite); exp(t) = 1 + t + t^2 q(t).
template <class V>
FL_FN V exp_nonpositive(V x) {
  using C = Coefficients<typename Value<V>::Scalar>;
  x = at_least(x, splat<V>(C::exp_lowest));
  const V shifter = splat<V>(C::exp_shifter);
  const V shifted = fma(x, splat<V>(C::log2_e), shifter);  // rounds to an integer in the low bits
  const V n = shifted - shifter;
  V t = fma(n, splat<V>(-C::ln2_high), x);
  t = fma(n, splat<V>(-C::ln2_low), t);
  return exp_reduced(shifted, t);
}
// At most 1.1 (float) and 1.1 (double) ulp for |rest| up to half a unit in the last place of x.
// exp(x + rest), rest being what x lost when it was rounded. The bias of times_power_of_two leaves no room for large powers: where
// x is positive, n is lowered, so far that what it makes is normal from the smallest n to the largest, and only the last
// multiplication may overflow.
template <class V>
FL_FN V exp_two_parts(V x, V rest, bool any_positive) {
  using C = Coefficients<typename Value<V>::Scalar>;
  const V shifter = splat<V>(C::exp_shifter), lowest = splat<V>(C::exp_lowest);
  V shifted = fma(x, splat<V>(C::log2_e), shifter);
  const V n = shifted - shifter;
  V t = fma(n, splat<V>(-C::ln2_high), x);
  t = fma(n, splat<V>(-C::ln2_low), t) + rest;
  if (!any_positive) return select(x < lowest, splat<V>(0), exp_reduced(shifted, t));
  const auto positive = splat<V>(0) < x;
  shifted = select(positive, shifted - splat<V>(C::exp_lowered), shifted);
  const V power = exp_reduced(shifted, t) * select(positive, splat<V>(C::exp_raise), splat<V>(1));
  return select(x < lowest, splat<V>(0), select(-x < lowest, splat<V>(__builtin_inff()), power));
}

// At most 1.6 (float) and 1.5 (double) ulp for e in [0, 1].
// log1p(e) = e + e^2 q(e)
template <class V>
FL_FN V log1p_unit(V e) {
  return fma(e * e, polynomial<typename Coefficients<typename Value<V>::Scalar>::Log1p>(e), e);
}
// At most 1.5 (float) and 1.5 (double) ulp for e in [0, 1].
// log1p(e) / e, which is 1 at 0
template <class V>
FL_FN V log1p_ratio(V e) {
  return fma(e, polynomial<typename Coefficients<typename Value<V>::Scalar>::Log1p>(e), splat<V>(1));
}

// A number as the sum of two.
template <class V>
struct TwoParts {
  V high, low;
};
// The power of 2 up to which x reaches, a normal number above 0: 2^n <= x < 2^(n + 1). unshift: log_unshift, or, so that n is
// that of x before it was scaled, log_unshift_scaled.
template <class V>
struct PowerOfTwo {
  V n, power, inverse;  // power: 2^n as x has it; inverse: 1 / power
};
template <class V>
FL_FN PowerOfTwo<V> power_of_two(V x, typename Value<V>::Scalar unshift) {
  using C = Coefficients<typename Value<V>::Scalar>;
  const auto exponent = Value<V>::to_bits(x) >> C::mantissa_bits;
  const V shifted = Value<V>::from_bits(exponent | Value<V>::to_bits(splat<V>(C::log_shifter)));
  const auto bits = exponent << C::mantissa_bits;
  return {shifted - splat<V>(unshift), Value<V>::from_bits(bits),
          Value<V>::from_bits(Value<V>::to_bits(splat<V>(C::log_invert)) - bits)};
}
// At most 2.1 (float) and 2.0 (double) ulp of 1/2 for u in (0, 2^62], however large the logarithm is.
// log(u): u = 2^n f with f in [1, 2), high = n ln2_high, which is exact, and low = n ln2_low + log1p(f - 1).
template <class V>
FL_FN TwoParts<V> log_unit(V u) {
  using C = Coefficients<typename Value<V>::Scalar>;
  const V scaled = u * splat<V>(C::log_scale);
  const PowerOfTwo<V> of = power_of_two(scaled, C::log_unshift_scaled);
  const V fraction = scaled * of.inverse - splat<V>(1);  // by multiplication, so that NaN stays
  return {of.n * splat<V>(C::ln2_high), fma(of.n, splat<V>(C::ln2_low), log1p_unit(fraction))};
}
// At most 1.6 (float) and 1.5 (double) ulp for q in [0, 2^32].
// log1p(q): 1 + q = 2^n (1 + f) with f = (q - (2^n - 1)) / 2^n. Below 1, f is q; q - (2^n - 1) is exact up to 2^24.
template <class V>
FL_FN V log1p_large(V q) {
  using C = Coefficients<typename Value<V>::Scalar>;
  const V one = splat<V>(1);
  const PowerOfTwo<V> of = power_of_two(one + q, C::log_unshift);
  const V fraction = (q - (of.power - one)) * of.inverse;
  return fma(of.n, splat<V>(C::ln2_high), fma(of.n, splat<V>(C::ln2_low), log1p_unit(fraction)));
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
// infinite: whether some weight may be. Then 0 times infinity is 0, in the weights and between them and their terms,
// and what the formulas below turn into infinity less infinity is made term by term. The compiler knows it, so that it
// costs nothing where it is not so: see `evaluate` in losses.h. unsure: whether they are taken to be finite, and a result of
// NaN will be looked at.
template <class V>
struct TermWeights {
  V positive, negative, sum;
  bool infinite, unsure;
};
template <class V>
FL_FN TermWeights<V> term_weights(V y) {
  return {y, splat<V>(1) - y, splat<V>(1), false, false};
}
template <class V>
FL_FN TermWeights<V> term_weights(V y, V p, V w, bool infinite = false) {
  const V opposite = splat<V>(1) - y, whole = fma(p, y, opposite);
  if (!infinite) return {w * (p * y), w * opposite, w * whole, false, true};
  const V weighted = product(p, y);
  return {product(w, weighted), product(w, opposite), product(w, unless_nan(whole, weighted + opposite)), true, false};
}
// For infinite weights, what is multiplied by them: l and s are 0 for m = infinity alone, not where they underflowed.
template <class V>
FL_FN V unless_underflown(const Logit<V>& logit, V small) {
  const V least = splat<V>(Coefficients<typename Value<V>::Scalar>::exp_unbias);
  return select(logit.minus_m == splat<V>(-__builtin_inff()), small, at_least(small, least));
}
// softplus(-z) where minus, else softplus(z).
template <class V>
FL_FN V softplus(const Logit<V>& logit, bool minus, bool infinite = false) {
  const auto negative = logit.z < splat<V>(0);
  const V l = log1p_unit(logit.e), large = l - logit.minus_m, small = infinite ? unless_underflown(logit, l) : l;
  return minus ? select(negative, large, small) : select(negative, small, large);
}

// At most 4.5 (float) and 4.5 (double) ulp for every z; 2.2 and 2.5 for targets 0 and 1 with p = w = 1.
// loss = a softplus(-z) + b softplus(z) = (a + b) l + (z < 0 ? a : b) m
template <class V>
FL_FN V loss(const Logit<V>& logit, const TermWeights<V>& weights) {
  const V dominant = select(logit.z < splat<V>(0), weights.positive, weights.negative);
  const V value = add_term(dominant, -logit.minus_m, weights.sum * log1p_unit(logit.e));
  if (!weights.infinite) return value;
  return unless_nan(value, product(weights.positive, softplus(logit, /*minus=*/true, true)) +
                               product(weights.negative, softplus(logit, /*minus=*/false, true)));
}

// The sum of many losses whose a + b is 1: log1p(q) + linear. With q = (1 + e_1) ... (1 + e_n) - 1 their l have the sum
// log1p(q), one logarithm for all of them. q grows by e + q e, no subtraction, so that small e keep all their digits;
// kGroup losses, at most, leave it below 2^32.
constexpr int kGroup = 32;
template <class V>
struct LossGroup {
  V q, linear;
};
// kLookedAt: a sum that comes to NaN will be made again, its losses one by one. So is that of an infinite logit then, also where
// its weight is 0, which asks less of all others.
template <bool kLookedAt, class V>
FL_FN LossGroup<V> with(const LossGroup<V>& group, const Logit<V>& logit, const TermWeights<V>& weights) {
  const V dominant = select(logit.z < splat<V>(0), weights.positive, weights.negative), m = -logit.minus_m;
  const V linear = kLookedAt ? fma(dominant, m, group.linear) : add_term(dominant, m, group.linear);
  return {fma(group.q, logit.e, group.q + logit.e), linear};
}
template <class V>
FL_FN LossGroup<V> joined(const LossGroup<V>& x, const LossGroup<V>& y) {
  return {fma(x.q, y.q, x.q + y.q), x.linear + y.linear};
}
template <class V>
FL_FN V loss(const LossGroup<V>& group) {
  return log1p_large(group.q) + group.linear;
}

// At most 7.5 (float) and 7.5 (double) ulp of the larger of its two terms; 2.5 of the result for targets 0 and 1 with
// p = w = 1.
// d loss / dz = b sigma(z) - a sigma(-z) = sign(z) (dominant - (a + b) s), times factor (which takes the sign).
// In the tail of a target of 0 or 1, dominant is 0 where the gradient is small.
template <class V>
FL_FN V grad_logit(const Logit<V>& logit, const TermWeights<V>& weights, V factor) {
  const auto negative = logit.z < splat<V>(0);
  const V dominant = select(negative, weights.positive, weights.negative);
  V size = fma(-weights.sum, sigma_minus(logit.e), dominant);
  if (weights.infinite) {
    const V s = sigma_minus(logit.e), other = select(negative, weights.negative, weights.positive);
    size = unless_nan(size, product(dominant, splat<V>(1) - s) - product(other, unless_underflown(logit, s)));
  }
  return size * select(negative, -factor, factor);
}

// At most 3.5 (float) and 3.5 (double) ulp of the larger of its two terms.
// d loss / dy = w (p softplus(-z) - softplus(z)) = w ((p - 1) l + (z < 0 ? p : -1) m): exactly -w z where p is 1
template <class V>
FL_FN V grad_target(const Logit<V>& logit, V p, V w, bool infinite = false) {
  const V slope = select(logit.z < splat<V>(0), p, splat<V>(-1));
  const V l = log1p_unit(logit.e), more = p - splat<V>(1);
  V first = more * l;
  if (infinite) first = unless_nan(first, product(more, unless_underflown(logit, l)));
  const V change = add_term(slope, -logit.minus_m, first), value = add_term(w, change, splat<V>(0));
  return infinite ? unless_nan(value, product(w, change)) : value;
}

// At most 3.6 (float) and 3.5 (double) ulp.
// d loss / dp = w y softplus(-z)
template <class V>
FL_FN V grad_pos_weight(const Logit<V>& logit, V y, V w, bool infinite = false) {
  const V value = add_term(w * y, softplus(logit, /*minus=*/true), splat<V>(0));
  return infinite ? unless_nan(value, product(product(w, y), softplus(logit, /*minus=*/true, true))) : value;
}

// Label smoothing s moves the target towards 1/2: y (1 - s) + s / 2.
template <class V>
FL_FN V smooth(V y, typename Value<V>::Scalar s) {
  return fma(y, splat<V>(1 - s), splat<V>(s / 2));
}

}  // namespace fused_logistic
