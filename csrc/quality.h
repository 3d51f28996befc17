// The quality focal loss and the varifocal loss, for soft targets: the loss times |sigma(z) - y|^gamma. Not to be included by
// itself: losses.h says how.
//   quality:    |sigma(z) - y|^gamma loss                     (Li et al., "Generalized Focal Loss", 2020; beta there)
//   varifocal:  y loss for y > 0, alpha |sigma(z) - y|^gamma loss else   (Zhang et al., "VarifocalNet", 2021);
//               with iou_weighted = false the former without its y
// With c = y for z < 0, 1 - y otherwise, and s = sigma(-m):
//   d = sigma(z) - y = sign(z) (c - s),   d |d|^gamma / dz = gamma |d|^(gamma - 1) sign(d) s (1 - s)
// Where c = 0, |d| = s and its logarithm is -m - l: for targets 0 and 1 both tails keep all their digits. Between them c - s
// may cancel; then the error is that of d, an ulp of the larger of c and s. Where d = 0 the derivative of a power is taken to
// be 0, gamma <= 1 included.
#pragma once
#include "powers.h"

namespace fused_logistic {

// alpha and gamma as in focal.h; varifocal: whether y > 0 has a weight instead of a power, and whether that is y.
template <class S>
struct QualityConstants {
  Exponent<S> exponent;
  S alpha;
  bool varifocal, iou_weighted;
};

// |d| and its derivative by z without s (1 - s), which is the sign of d; where d is 0 that is 1, and who uses it sees to it.
template <class V>
struct Difference {
  V c, s, size, sign;
};
template <class V>
FL_FN Difference<V> difference(const Logit<V>& logit, V y) {
  const V zero = splat<V>(0), one = splat<V>(1), s = sigma_minus(logit.e);
  const auto negative = logit.z < zero;
  const V c = select(negative, y, one - y), of = select(negative, s - c, c - s);
  return {c, s, -minus_absolute(of), select(of < zero, -one, one)};
}

// What a sample's weight is multiplied by.
template <class V>
FL_FN V quality_weight(V y, const QualityConstants<typename Value<V>::Scalar>& constants) {
  const V one = splat<V>(1);
  if (!constants.varifocal) return one;
  return select(splat<V>(0) < y, constants.iou_weighted ? y : one, splat<V>(constants.alpha));
}

// |sigma(z) - y|^gamma, or 1 where y > 0 has a weight instead, and its derivative.
// But for what c - s lost, the loss and its gradient are within 4 + 2.8 gamma ulp: tests/test_family_exact.py.
template <bool kWhole, class V>
FL_FN Power<V> quality_power(const Logit<V>& logit, V y, const QualityConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const auto positive = zero < y;
  if (constants.varifocal) y = select(positive, zero, y);  // their power is 1
  const Difference<V> d = difference(logit, y);
  const auto none = d.size == zero;
  Power<V> of;
  if constexpr (kWhole) {
    of = whole_power(d.size, constants.exponent.gamma);
    if (constants.exponent.gamma == 1) of.slope = select(none, zero, one);
    of.slope = of.slope * (d.sign * (d.s * (one - d.s)));
  } else {
    const auto tail = d.c == zero;
    TwoParts<V> of_size = {zero, zero};
    if (Value<V>::any(d.c != zero)) of_size = log_unit(select(none, one, d.size));
    const V lowest = splat<V>(constants.exponent.log_lowest);
    const V high = select(tail, at_least(logit.minus_m, lowest), of_size.high);
    const V low = select(tail, -log1p_unit(logit.e), of_size.low), gamma = splat<V>(constants.exponent.gamma);
    // any_positive: targets outside of [0, 1]
    of.power = power_of(high, low, gamma, splat<V>(constants.exponent.low), Value<V>::any(one < d.size));
    if (constants.exponent.gamma != 0) of.power = select(none, select(tail, of.power, zero), of.power);
    // s / |d|, which is 1 where c = 0, however small s is
    const V ratio = select(tail, one, select(none, zero, d.s / select(none, one, d.size)));
    of.slope = of.power * (gamma * d.sign * ((one - d.s) * ratio));
  }
  if (constants.varifocal) of = {select(positive, one, of.power), select(positive, zero, of.slope)};
  return of;
}
template <bool kWhole, class V>
FL_FN Power<V> quality(const Logit<V>& logit, V y, const QualityConstants<typename Value<V>::Scalar>& constants) {
  const Power<V> of = quality_power<kWhole>(logit, y, constants);
  return constants.varifocal ? quality_weight(y, constants) * of : of;
}

// d (weight power loss) / dy, w without the loss's own weight:
//   quality_weight (power d loss / dy + loss d |d|^gamma / dy), and for y > 0 with iou_weighted the loss.
// d |d|^gamma / dy = -gamma |d|^gamma / d. Where c = 0 the loss is (a + b) l, and (a + b) l / s stays finite.
template <class V>
FL_RARE_FN V quality_grad_target(const Logit<V>& logit, V y, V p, V w,
                                 const QualityConstants<typename Value<V>::Scalar>& constants, bool infinite = false) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const auto positive = zero < y;
  const V own = quality_weight(y, constants), weight = infinite ? product(w, own) : w * own;
  const TermWeights<V> terms = term_weights(y, p, weight, infinite);
  const V whole = loss(logit, terms);
  const Difference<V> d = difference(logit, y);
  const auto none = d.size == zero;
  const V over = select(d.c == zero, terms.sum * (log1p_ratio(logit.e) * (one + logit.e)),
                        select(none, zero, whole / select(none, one, d.size)));
  V change = grad_target(logit, p, weight, infinite);
  V slope = splat<V>(-constants.exponent.gamma) * d.sign;
  if (constants.varifocal) slope = select(positive, zero, slope);
  change = add_term(slope, over, change);
  V value = add_term(quality_power<false>(logit, y, constants).power, change, zero);
  if (constants.varifocal && constants.iou_weighted) {
    value = value + select(positive, loss(logit, term_weights(y, p, w, infinite)), zero);
  }
  return value;
}

}  // namespace fused_logistic
