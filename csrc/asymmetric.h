// The asymmetric loss: powers of their own for positives and negatives, and no loss of negatives that are likely enough.
// Not to be included by itself: losses.h says how.
// (Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label Classification")
//   p_m = max(sigma(z) - clip, 0),   q = y sigma(-z) + (1 - y) p_m,   gamma = gamma_pos y + gamma_neg (1 - y)
//   loss = q^gamma (a softplus(-z) - b log(1 - p_m))
// With U = (1 + e) p_m before it is cut at 0 and R = (1 + e) (1 - p_m), both of which have no subtraction but U's:
//   z < 0:   U = (1 - clip) e - clip,   R = 1 + clip + clip e
//   z >= 0:  U = (1 - clip) - clip e,   R = clip + (1 + clip) e
//   -log(1 - p_m) = log1p(U / R),   its derivative s / R,   dq/dz = ((1 - y) [U > 0] - y) s (1 - s)
// Where clip = 0 that is softplus(z) and sigma(z), from which both tails keep all their digits. Where it is not, U is the
// difference that the loss is made of: an ulp of sigma(z) is lost there, as in whatever computes with sigma(z).
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

// (1 + e) times p_m and 1 - p_m.
template <class V>
struct Shifted {
  V u, r;
};
template <class V>
FL_FN Shifted<V> shifted(const Logit<V>& logit, const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V clip = splat<V>(constants.clip), opposite = splat<V>(constants.opposite);
  const V together = splat<V>(constants.together);
  const auto negative = logit.z < splat<V>(0);
  const V u = fma(select(negative, opposite, -clip), logit.e, select(negative, -clip, opposite));
  return {at_least(u, splat<V>(0)), fma(select(negative, clip, together), logit.e, select(negative, together, clip))};
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
  const decltype(zero == zero) tail = (all == logit.e) & ((logit.z < zero) | (y == one));
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
  const V high = at_least(select(tail, logit.minus_m, of_all.high), lowest);
  const V low = select(tail, zero, of_all.low) - log1p_unit(logit.e);
  const V power = power_of(high, low, gamma.high, gamma.low, soft);
  return {select(tail, power, select(none & (gamma.high != zero), zero, power)), gamma.high, high + low, tail};
}

// power: q^gamma, slope: its derivative by z; sigma: the derivative of -log(1 - p_m); small: that logarithm or, where the
// target is 1, log1p(e). hard: where the target is 0 or 1.
template <class V>
struct Asymmetric {
  V power, slope, sigma, small;
  decltype(V() == V()) hard;
  bool soft, clipped;  // whether any target is not hard; whether clip is not 0
};

// kWhole: both gammas are 0, 1, 2, 3 or 4. What a target comes to does not depend on whether its neighbours are soft.
template <bool kWhole, class V>
FL_FN Asymmetric<V> asymmetric(const Logit<V>& logit, V y,
                               const AsymmetricConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1), e = logit.e, s = sigma_minus(e), other = one - s;
  const auto negative = logit.z < zero, positive = y != zero;
  const decltype(zero == zero) hard = (y == zero) | (y == one);
  const bool soft = Value<V>::any(positive & (y != one)), clipped = constants.clip != 0;
  V u = select(negative, e, one), sigma = select(negative, s, other), small = zero;
  if (clipped) {
    const Shifted<V> at = shifted(logit, constants);
    u = at.u;
    sigma = select(u == zero, zero, s / at.r);
    small = log1p_large(select(y == one, e, u / at.r));
  }
  const V of_positive = select(negative, one, e);  // (1 + e) sigma(-z)
  V all = select(positive, of_positive, u);        // (1 + e) q
  V direction = select(positive, -one, select(u == zero, zero, one));
  if (soft) {
    all = fma(y, of_positive, (one - y) * u);
    direction = select(u == zero, zero, one - y) - y;
  }
  Power<V> whole = {one, zero};
  if constexpr (kWhole) {
    const V q = all * other;
    const Power<V> of_y = whole_power(q, constants.positive.gamma), rest = whole_power(q, constants.negative.gamma);
    whole = {select(positive, of_y.value, rest.value),
             select(positive, of_y.slope, rest.slope) * (direction * (s * other))};
    if (!soft) return {whole.value, whole.slope, sigma, small, hard, soft, clipped};
  }
  const AsymmetricPower<V> by_log = asymmetric_power(logit, y, all, soft, constants);
  // s / ((1 + e) q), which is 1 - s where q is s
  const auto none = all == zero;
  const V ratio = select(by_log.tail, other, select(none, zero, s / select(none, one, all)));
  const V slope = by_log.power * (by_log.gamma * direction * ratio);
  if constexpr (!kWhole) return {by_log.power, slope, sigma, small, hard, soft, clipped};
  return {select(hard, whole.value, by_log.power), select(hard, whole.slope, slope), sigma, small, hard, soft, clipped};
}

// Within 4 + 2.8 gamma ulp, and so is the gradient: tests/test_family_exact.py.
template <class V>
FL_FN V asymmetric_loss(const Logit<V>& logit, const TermWeights<V>& weights, const Asymmetric<V>& of) {
  const V zero = splat<V>(0), m = select(logit.z < zero, -logit.minus_m, zero);
  V value;
  if (!of.clipped) {
    value = loss(logit, weights);
  } else {
    value = add_term(weights.positive, m, weights.sum * of.small);
    if (of.soft || weights.infinite) {
      const V softplus = m + log1p_unit(logit.e);
      const V both = add_term(weights.positive, softplus, weights.negative * of.small);
      value = select(of.hard, value, both);
      const V by_terms = product(weights.positive, softplus) + product(weights.negative, of.small);
      if (weights.infinite) value = unless_nan(value, by_terms);
    }
  }
  return add_term(of.power, value, zero);
}

// d loss / dz = q^gamma (b s / R - a sigma(-z)) + (d q^gamma / dz) loss, times factor.
template <class V>
FL_FN V asymmetric_grad_logit(const Logit<V>& logit, const TermWeights<V>& weights, const Asymmetric<V>& of, V factor) {
  const V zero = splat<V>(0);
  Asymmetric<V> alone = of;
  alone.power = splat<V>(1);
  V change;
  if (!of.clipped) {
    change = grad_logit(logit, weights, splat<V>(1));
  } else {
    const V s = sigma_minus(logit.e), minus = select(logit.z < zero, splat<V>(1) - s, s);
    change = fma(weights.negative, of.sigma, -(weights.positive * minus));
    if (weights.infinite) {
      change = unless_nan(change, product(weights.negative, of.sigma) - product(weights.positive, minus));
    }
  }
  return add_term(of.power, change, add_term(of.slope, asymmetric_loss(logit, weights, alone), zero)) * factor;
}

// d loss / dy = w q^gamma (p softplus(-z) + log(1 - p_m) + loss ((gamma_pos - gamma_neg) log q + gamma (dq/dy) / q)), the loss
// without w and q^gamma. Where q is s and small that loss is (p y + 1 - y) l, and l / e stays finite.
template <class V>
FL_RARE_FN V asymmetric_grad_target(const Logit<V>& logit, V y, V p, V w,
                                    const AsymmetricConstants<typename Value<V>::Scalar>& constants,
                                    bool infinite = false) {
  const V zero = splat<V>(0), one = splat<V>(1), l = log1p_unit(logit.e);
  const auto negative = logit.z < zero;
  V u = select(negative, logit.e, one), softplus = select(negative, zero, -logit.minus_m) + l;
  if (constants.clip != 0) {
    const Shifted<V> at = shifted(logit, constants);
    u = at.u;
    softplus = log1p_large(u / at.r);
  }
  const V minus = select(negative, -logit.minus_m, zero) + l, of_positive = select(negative, one, logit.e);
  const V all = fma(y, of_positive, (one - y) * u), weighted = p * y, whole = fma(p, y, one - y);
  const V value = add_term(weighted, minus, add_term(one - y, softplus, zero));
  const AsymmetricPower<V> by_log = asymmetric_power(logit, y, all, true, constants);
  const auto none = all == zero;
  const V over = select(by_log.tail, whole * log1p_ratio(logit.e), select(none, zero, value / select(none, one, all)));
  V change = add_term(p, minus, -softplus);
  change = add_term(splat<V>(constants.slope) * select(none & (logit.e != zero), zero, by_log.log_q), value, change);
  change = add_term(by_log.gamma * (of_positive - u), over, change);
  const V result = add_term(by_log.power, change, zero);
  return infinite ? product(w, result) : w * result;
}

}  // namespace fused_logistic
