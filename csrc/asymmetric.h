// The asymmetric loss: powers of their own for positives and negatives, and no loss of negatives that are likely enough.
// Not to be included by itself: losses.h says how.
// (Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label Classification")
//   p_m = max(sigma(z) - clip, 0),   q = y sigma(-z) + (1 - y) p_m,   gamma = gamma_pos y + gamma_neg (1 - y)
//   loss = q^gamma (a softplus(-z) - b log(1 - p_m))
// With A = (1 + e) sigma(z) and B = (1 + e) sigma(-z), of which the larger is 1 and the other e, U = (1 + e) p_m before it is cut
// at 0 and R = (1 + e) (1 - p_m) have no subtraction but U's:
//   U = (1 - clip) A - clip B,   R = clip A + (1 + clip) B
//   -log(1 - p_m) = log1p(U / R),   its derivative s / R,   dq/dz = ((1 - y) [U > 0] - y) s (1 - s)
// Where clip = 0 that is softplus(z) and sigma(z), from which both tails keep all their digits. Where it is not, U is the
// difference that the loss is made of: an ulp of sigma(z) is lost there, as in whatever computes with sigma(z).
// But for that the loss and its gradient are within 4 + 2.8 gamma ulp: tests/test_family_exact.py.
#pragma once
#include "powers.h"

namespace fused_logistic {

template <class S>
struct AsymmetricConstants {
  Exponent<S> negative, positive;
  S slope, slope_low;          // gamma_pos - gamma_neg in two parts
  S clip, opposite, together;  // clip, 1 - clip, 1 + clip
};
template <class S>
FL_FN AsymmetricConstants<S> asymmetric_constants(double gamma_neg, double gamma_pos, double clip) {
  const double slope = gamma_pos - gamma_neg;
  return {exponent_of<S>(gamma_neg),
          exponent_of<S>(gamma_pos),
          S(slope),
          S(slope - double(S(slope))),
          S(clip),
          S(1 - clip),
          S(1 + clip)};
}

// (1 + e) times sigma(-z), p_m and 1 - p_m.
template <class V>
struct Shifted {
  V minus, u, r;
};
template <class V>
FL_FN Shifted<V> shifted(const Logit<V>& logit, const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1), clip = splat<V>(constants.clip);
  const auto negative = logit.z < zero;
  const V plus = select(negative, logit.e, one), minus = select(negative, one, logit.e);
  if (constants.clip == 0) return {minus, plus, minus};
  const V u = fma(splat<V>(constants.opposite), plus, -(clip * minus));
  return {minus, at_least(u, zero), fma(clip, plus, splat<V>(constants.together) * minus)};
}

// The exponent of a soft target, gamma_neg + (gamma_pos - gamma_neg) y, in two parts.
template <class V>
FL_FN TwoParts<V> asymmetric_gamma(V y, const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V slope = splat<V>(constants.slope), start = splat<V>(constants.negative.gamma), change = slope * y;
  const V gamma = start + change, rounded = gamma - start;
  const V lost = (start - (gamma - rounded)) + (change - rounded);
  const V low = fma(slope, y, -change) + fma(splat<V>(constants.slope_low), y, splat<V>(constants.negative.low));
  return {gamma, lost + low};
}

// q^gamma by the logarithm, of all = (1 + e) q. A q of 0 has none, and the power 0 unless gamma is 0. Negative ones, of targets
// outside of [0, 1], count as their size.
template <class V>
struct AsymmetricPower {
  V power, gamma, log_q;
  decltype(V() == V()) tail;  // where q is e / (1 + e), whose logarithm is -m - l
};
template <class V>
FL_RARE_FN AsymmetricPower<V> asymmetric_power(const Logit<V>& logit, V y, V all, bool soft,
                                               const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1), size = select(all < zero, -all, all);
  const auto positive = y != zero, none = size == zero;
  using Mask = decltype(zero == zero);
  const Mask is_one = y == one, is_tail = (logit.z < zero) | is_one;  // without a margin
  const Mask tail = (all == logit.e) & (constants.clip == 0 ? is_tail : is_one);
  TwoParts<V> gamma = {select(positive, splat<V>(constants.positive.gamma), splat<V>(constants.negative.gamma)),
                       select(positive, splat<V>(constants.positive.low), splat<V>(constants.negative.low))};
  V lowest = select(positive, splat<V>(constants.positive.log_lowest), splat<V>(constants.negative.log_lowest));
  if (soft) {
    const auto hard = (y == zero) | (y == one);
    const TwoParts<V> of_y = asymmetric_gamma(y, constants);
    gamma = {select(hard, gamma.high, of_y.high), select(hard, gamma.low, of_y.low)};
    lowest = select(hard, lowest, splat<V>(-0x1p11));  // which no logarithm reaches
  }
  const TwoParts<V> of_all = log_unit(select(none, one, size));
  const V high = select(tail, at_least(logit.minus_m, lowest), of_all.high);
  const V low = select(tail, zero, of_all.low) - log1p_unit(logit.e);
  const V power = power_of(high, low, gamma.high, gamma.low, soft);
  return {select(tail, power, select(none & (gamma.high != zero), zero, power)), gamma.high, high + low, tail};
}

// q^gamma and its derivative; the derivatives of softplus(-z) and of -log(1 - p_m), and that logarithm or, where the target is
// 1, log1p(e). hard: where the target is 0 or 1; soft: whether any is not; clipped: whether clip is not 0.
template <class V>
struct Asymmetric {
  V power, slope, minus, sigma, small;
  decltype(V() == V()) hard;
  bool soft, clipped;
};

// kWhole: both gammas are 0, 1, 2, 3 or 4; kHard: no target is soft. What a target comes to does not depend on whether its
// neighbours are.
template <bool kWhole, bool kHard, class V>
FL_FN Asymmetric<V> asymmetric(const Logit<V>& logit, V y,
                               const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1), e = logit.e;
  const auto positive = y != zero;
  const Shifted<V> at = shifted(logit, constants);
  Asymmetric<V> of = {};
  of.hard = (y == zero) | (y == one);
  of.soft = !kHard && Value<V>::any(positive & (y != one));
  of.clipped = constants.clip != 0;
  V inverse;         // 1 / (1 + e)
  if (of.clipped) {  // three quotients, and one division: by (1 + e) R
    const V d = one + e, both = one / (d * at.r);
    inverse = at.r * both;
    of.sigma = select(at.u == zero, zero, e * both);
    of.small = log1p_large(select(y == one, e, at.u * (d * both)));
  } else {
    inverse = one - sigma_minus(e);
  }
  of.minus = at.minus * inverse;
  V all = select(positive, at.minus, at.u);  // (1 + e) q
  V direction = select(positive, -one, select(at.u == zero, zero, one));
  if (of.soft) {
    all = fma(y, at.minus, (one - y) * at.u);
    direction = select(at.u == zero, zero, one - y) - y;
  }
  const V s = e * inverse;
  if constexpr (kWhole) {
    const V q = all * inverse;
    const Power<V> of_y = whole_power(q, constants.positive.gamma), rest = whole_power(q, constants.negative.gamma);
    of.power = select(positive, of_y.power, rest.power);
    of.slope = select(positive, of_y.slope, rest.slope) * (direction * (s * inverse));
    if (!of.soft) return of;
  }
  const AsymmetricPower<V> by_log = asymmetric_power(logit, y, all, of.soft, constants);
  // s / ((1 + e) q), which is 1 - s where q is s
  const auto none = all == zero;
  const V ratio = select(by_log.tail, inverse, select(none, zero, s / select(none, one, all)));
  const V slope = by_log.power * (by_log.gamma * direction * ratio);
  of.power = kWhole ? select(of.hard, of.power, by_log.power) : by_log.power;
  of.slope = kWhole ? select(of.hard, of.slope, slope) : slope;
  return of;
}

// The loss without its power.
template <class V>
FL_FN V asymmetric_loss(const Logit<V>& logit, const TermWeights<V>& weights, const Asymmetric<V>& of) {
  if (!of.clipped) return loss(logit, weights);
  const V m = select(logit.z < splat<V>(0), -logit.minus_m, splat<V>(0));
  V value = add_term(weights.positive, m, weights.sum * of.small);
  if (of.soft || weights.infinite) {
    const V minus = softplus(logit, /*minus=*/true);
    value = select(of.hard, value, add_term(weights.positive, minus, weights.negative * of.small));
    const V by_terms = product(weights.positive, minus) + product(weights.negative, of.small);
    if (weights.infinite) value = unless_nan(value, by_terms);
  }
  return value;
}
// And its derivative: b s / R - a sigma(-z).
template <class V>
FL_FN V asymmetric_grad_logit(const Logit<V>& logit, const TermWeights<V>& weights, const Asymmetric<V>& of) {
  if (!of.clipped) return grad_logit(logit, weights, splat<V>(1));
  const V change = fma(weights.negative, of.sigma, -(weights.positive * of.minus));
  const V by_terms = product(weights.negative, of.sigma) - product(weights.positive, of.minus);
  return weights.infinite ? unless_nan(change, by_terms) : change;
}

// d loss / dy = w q^gamma (p softplus(-z) + log(1 - p_m) + loss ((gamma_pos - gamma_neg) log q + gamma (dq/dy) / q)), the loss
// without w and q^gamma. Where q is s and small that loss is (p y + 1 - y) l, and l / e stays finite.
template <class V>
FL_RARE_FN V asymmetric_grad_target(const Logit<V>& logit, V y, V p, V w,
                                    const AsymmetricConstants<typename Value<V>::Scalar>& constants,
                                    bool infinite = false) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const Shifted<V> at = shifted(logit, constants);
  const V minus = softplus(logit, /*minus=*/true);
  const V plus = constants.clip == 0 ? softplus(logit, /*minus=*/false) : log1p_large(at.u / at.r);
  const V all = fma(y, at.minus, (one - y) * at.u), weighted = infinite ? product(p, y) : p * y;
  V whole = fma(p, y, one - y);
  if (infinite) whole = unless_nan(whole, weighted + (one - y));
  const V value = add_term(weighted, minus, add_term(one - y, plus, zero));
  const AsymmetricPower<V> by_log = asymmetric_power(logit, y, all, true, constants);
  const auto none = all == zero;
  const V over = select(by_log.tail, whole * log1p_ratio(logit.e), select(none, zero, value / select(none, one, all)));
  V change = add_term(p, minus, -plus);
  change = add_term(splat<V>(constants.slope) * select(none & (logit.e != zero), zero, by_log.log_q), value, change);
  change = add_term(by_log.gamma * (at.minus - at.u), over, change);
  const V result = add_term(by_log.power, change, zero), weighed = add_term(w, result, zero);
  return infinite ? unless_nan(weighed, product(w, result)) : weighed;
}

}  // namespace fused_logistic
