// Powers of a probability q, by which losses are multiplied.
#pragma once
#include "logistic.h"

namespace fused_logistic {

// q^gamma by the logarithm of q, which comes in two parts, one exact and one that is at most about 1; the product with gamma is
// kept in two parts too, so that the relative error is of the order of gamma units in the last place, not of gamma |log q|.

// gamma in two parts; the logarithm from which on down q^gamma is 0, so that no product overflows.
template <class S>
struct Exponent {
  S gamma, low, log_lowest;
};
template <class S>
FL_FN Exponent<S> exponent_of(double gamma) {
  const double lowest = gamma == 0 ? -0x1p126 : 1.5 * double(Coefficients<S>::exp_lowest) / gamma;
  return {S(gamma), S(gamma - double(S(gamma))), S(lowest < -0x1p126 ? -0x1p126 : lowest)};
}
// high: at least log_lowest where it is no logarithm of log_unit, which is small enough and whose rest may be above 0;
// any_positive: whether any logarithm may be above 0.
template <class V>
FL_RARE_FN V power_of(V high, V low, V gamma, V gamma_low, bool any_positive) {
  const V log_q = high + low, x = gamma * log_q;
  V rest = fma(gamma, log_q, -x);
  rest = fma(gamma, (high - log_q) + low, rest);
  rest = fma(gamma_low, log_q, rest);
  return exp_two_parts(x, rest, any_positive);
}

// A power of q and its derivative: by q, or, as the losses are multiplied by them, by the logit.
template <class V>
struct Power {
  V power, slope;
};
template <class V>
FL_FN Power<V> operator*(V weight, const Power<V>& of) {
  return {weight * of.power, weight * of.slope};
}
// For a gamma of 0, 1, 2, 3 or 4, as nearly all are, by multiplication.
template <class V>
FL_FN Power<V> whole_power(V q, typename Value<V>::Scalar gamma) {
  using S = typename Value<V>::Scalar;
  const V zero = splat<V>(0), one = splat<V>(1);
  if (gamma == S(0)) return {one, zero};
  if (gamma == S(1)) return {q, one};
  const V square = q * q;
  if (gamma == S(2)) return {square, q + q};
  if (gamma == S(3)) return {square * q, splat<V>(3) * square};
  return {square * square, splat<V>(4) * (square * q)};
}

}  // namespace fused_logistic
