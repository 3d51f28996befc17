// The focal loss. Not to be included by itself: losses.h says how.
// The loss times q^gamma, where q = 1 - p_t = y sigma(-z) + (1 - y) sigma(z) is the probability given to the other label,
// and times alpha_t = alpha y + (1 - alpha) (1 - y) (Lin, Goyal, Girshick, He and Dollar, "Focal loss for dense object
// detection"). With c = y for z < 0, 1 - y otherwise:
//   q = c + (1 - 2 c) s,   q' = (1 - 2 y) s (1 - s)
// By the logarithm (fp64, other exponents, the derivative by the target), with u = c + (1 - c) e:
//   q = u / (1 + e),   log q = log u - l,   q^gamma = exp(gamma log q),
//   q'/q = (1 - 2 y) s / u,   d log q / dy = -sign(z) (1 - e) / u.
// A target outside of [0, 1] may make q negative, or larger than 1. The power is then that of |q|, negative where q is
// and gamma is odd, which for whole gamma is q^gamma; the derivatives stay as they are, with the sign of q.
// A target of 0 or 1 needs no logarithm: where c = 1, log q = -l; where c = 0, u is e and log q = -m - l.
#pragma once
#include "powers.h"

namespace fused_logistic {

// The sign of q^gamma where q is negative; the weights of y and of 1 - y in alpha_t, 1 and 1 without alpha. Made once per
// kernel from what the user gave.
template <class S>
struct FocalConstants {
  Exponent<S> exponent;
  S sign, alpha, alpha_opposite;
};
FL_FN bool is_whole(double x) { return (x + 0x1p52) - 0x1p52 == x; }  // of 0 <= x
template <class S>
FL_FN FocalConstants<S> focal_constants(double gamma, double alpha, double alpha_opposite) {
  return {exponent_of<S>(gamma), S(is_whole(gamma) && !is_whole(gamma / 2) ? -1 : 1), S(alpha), S(alpha_opposite)};
}

template <class V>
FL_FN V focal_alpha(V y, const FocalConstants<typename Value<V>::Scalar>& constants) {
  if (constants.alpha == 1 && constants.alpha_opposite == 1) return splat<V>(1);  // y + (1 - y) is not, for a large y
  return fma(splat<V>(constants.alpha), y, splat<V>(constants.alpha_opposite) * (splat<V>(1) - y));
}

// q^gamma, without alpha_t, and what it is made of; soft: whether any target is neither 0 nor 1. Where none is, which is the
// rule, the logarithm and the division by u = 1 are left out: a quarter of the time, and no bit.
// A u of 0 with c other than 0 is the rounded sum of two numbers that cancel: far less than its error stands for it, so
// that q^gamma q'/q is q' for gamma = 1. A |u| that is too large for log_unit counts as the largest that is not.
template <class V>
struct FocalPower {
  V c, u, power;
  bool soft;
};
template <class V>
FL_FN FocalPower<V> focal_by_log(const Logit<V>& logit, V y,
                                 const FocalConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1), opposite = one - y, gamma = splat<V>(constants.exponent.gamma);
  const auto negative = logit.z < zero;
  const V c = select(negative, y, opposite);
  V u = fma(select(negative, opposite, y), logit.e, c);
  TwoParts<V> of_u = {zero, zero};
  const bool soft = Value<V>::any((c != zero) & (c != one));
  bool outside = false;  // of [0, 1], some target
  if (soft) {
    using C = Coefficients<typename Value<V>::Scalar>;
    outside = Value<V>::any((c < zero) | (one < c));
    if (outside) u = select((u == zero) & (c != zero), splat<V>(C::exp_unbias), u);
    of_u = log_unit(outside ? -at_least(minus_absolute(u), splat<V>(-C::log_scale / 4)) : u);
  }
  const V lowest = splat<V>(constants.exponent.log_lowest);
  const V high = select(c == zero, at_least(logit.minus_m, lowest), of_u.high);
  const V low = select(c == zero, zero, of_u.low) - log1p_unit(logit.e);
  V power = power_of(high, low, gamma, splat<V>(constants.exponent.low), outside);
  if (outside) power = power * select(u < zero, splat<V>(constants.sign), one);
  return {c, u, power, soft};
}

// At most 2.6 (float) and 2.6 (double) ulp times 1 + gamma, where q^gamma is a normal number and gamma at most 8: that of the
// power without alpha. What is made of it:
// At most 2.7 (float) and 2.7 (double) ulp times 1 + gamma: FocalLossOf::value.
// At most 5.0 (float) and 5.0 (double) ulp times 1 + gamma of the largest of y sigma(-z), (1 - y) sigma(z) and
// gamma (q'/q) loss, each times q^gamma: FocalLossOf::by_logit.
// alpha_t q^gamma and its derivative. kWhole: gamma is 0, 1, 2, 3 or 4.
template <bool kWhole, class V>
FL_FN Power<V> focal(const Logit<V>& logit, V y, const FocalConstants<typename Value<V>::Scalar>& constants) {
  const V one = splat<V>(1), s = sigma_minus(logit.e), gamma = splat<V>(constants.exponent.gamma);
  const V change = fma(splat<V>(-2), y, one);
  Power<V> of;
  if constexpr (kWhole) {
    const V c = select(logit.z < splat<V>(0), y, one - y);
    of = whole_power(fma(fma(splat<V>(-2), c, one), s, c), constants.exponent.gamma);
    of.slope = of.slope * (change * (s * (one - s)));
  } else {
    const FocalPower<V> by_log = focal_by_log(logit, y, constants);
    // where c = 0, s / u = s / e = 1 - s
    const V ratio = select(by_log.c == splat<V>(0), one - s, by_log.soft ? s / by_log.u : s);
    of = {by_log.power, by_log.power * (gamma * (change * ratio))};
  }
  return focal_alpha(y, constants) * of;
}

// At most 4.0 (float) and 4.0 (double) ulp times 1 + gamma of q^gamma z or q^gamma gamma loss / u, the larger.
// d focal / dy = q^gamma (alpha_t d loss / dy + alpha_t' loss + alpha_t gamma (d log q / dy) loss), the losses without
// alpha_t. Where c = 0 the loss is (a + b) l, and (a + b) l / e stays finite.
template <class V>
FL_RARE_FN V focal_grad_target(const Logit<V>& logit, V y, V p, V w,
                               const FocalConstants<typename Value<V>::Scalar>& constants, bool infinite = false) {
  const V zero = splat<V>(0), alpha = focal_alpha(y, constants), gamma = splat<V>(constants.exponent.gamma);
  const FocalPower<V> of = focal_by_log(logit, y, constants);
  const TermWeights<V> weights = term_weights(y, p, w, infinite);
  const V whole = loss(logit, weights);
  const V over_u = select(of.c == zero, weights.sum * log1p_ratio(logit.e), whole / of.u);
  const V slope = alpha * select(logit.z < zero, gamma, -gamma) * (splat<V>(1) - logit.e);
  V value = add_term(slope, over_u, grad_target(logit, p, infinite ? product(w, alpha) : w * alpha, infinite));
  value = add_term(splat<V>(constants.alpha - constants.alpha_opposite), whole, value);
  return add_term(of.power, value, zero);
}

}  // namespace fused_logistic
