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

// |sigma(z) - y|^gamma and its derivative by z; for the derivative by y |d|, and where it stands for a power at all.
template <class V>
struct Quality {
  V power, slope, size;
};

// The loss and its gradient are within 4 + 2.8 gamma ulp: tests/test_family_exact.py.
template <bool kWhole, class V>
FL_FN Quality<V> quality(const Logit<V>& logit, V y, const QualityConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const auto negative = logit.z < zero, positive = zero < y;
  if (constants.varifocal) y = select(positive, zero, y);  // their power is 1
  const V c = select(negative, y, one - y), s = sigma_minus(logit.e), difference = c - s;
  const V size = select(difference < zero, -difference, difference);
  const V step = s * (one - s);
  // d |d| / dz, without its s (1 - s)
  const V sign = select(negative, select(difference < zero, one, -one), select(difference < zero, -one, one));
  Power<V> power;
  if constexpr (kWhole) {
    power = whole_power(size, constants.exponent.gamma);
    power.slope = power.slope * (sign * step);
  } else {
    const auto tail = c == zero, none = size == zero;
    TwoParts<V> of_size = {zero, zero};
    if (Value<V>::any(c != zero)) of_size = log_unit(select(none, one, size));
    const V high = at_least(select(tail, logit.minus_m, of_size.high), splat<V>(constants.exponent.log_lowest));
    const V low = select(tail, -log1p_unit(logit.e), of_size.low), gamma = splat<V>(constants.exponent.gamma);
    // any_positive: targets outside of [0, 1]
    power.value = power_of(high, low, gamma, splat<V>(constants.exponent.low), Value<V>::any(one < size));
    if (constants.exponent.gamma != 0) power.value = select(none, select(tail, power.value, zero), power.value);
    // s / |d|, which is 1 where c = 0, however small s is
    const V ratio = select(tail, one, select(none, zero, s / select(none, one, size)));
    power.slope = power.value * (gamma * sign * ((one - s) * ratio));
  }
  if (constants.varifocal) {
    power = {select(positive, one, power.value), select(positive, zero, power.slope)};
  }
  return {power.value, power.slope, size};
}

// What a sample's weight is multiplied by.
template <class V>
FL_FN V quality_weight(V y, const QualityConstants<typename Value<V>::Scalar>& constants) {
  const V one = splat<V>(1);
  if (!constants.varifocal) return one;
  return select(splat<V>(0) < y, constants.iou_weighted ? y : one, splat<V>(constants.alpha));
}

// d (weight power loss) / dy, w without the loss's own weight:
//   quality_weight (power d loss / dy + loss d |d|^gamma / dy), and for y > 0 with iou_weighted the loss.
// d |d|^gamma / dy = -gamma |d|^gamma / d. Where c = 0 the loss is (a + b) l, and (a + b) l / s stays finite.
template <class V>
FL_RARE_FN V quality_grad_target(const Logit<V>& logit, const Quality<V>& quality, V y, V p, V w,
                                 const QualityConstants<typename Value<V>::Scalar>& constants, bool infinite = false) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const auto negative = logit.z < zero, positive = zero < y;
  const V own = quality_weight(y, constants), weight = infinite ? product(w, own) : w * own;
  const TermWeights<V> terms = term_weights(y, p, weight, infinite);
  const V whole = loss(logit, terms), s = sigma_minus(logit.e), c = select(negative, y, one - y);
  const auto none = quality.size == zero;
  const V over = select(c == zero, terms.sum * (log1p_ratio(logit.e) * (one + logit.e)),
                        select(none, zero, whole / select(none, one, quality.size)));
  const auto below = c < s;  // sign(d) = sign(z) sign(c - s)
  const V sign = select(negative, select(below, one, -one), select(below, -one, one));
  V change = grad_target(logit, p, weight, infinite);
  V slope = splat<V>(-constants.exponent.gamma) * sign;
  if (constants.varifocal) slope = select(positive, zero, slope);
  change = add_term(slope, over, change);
  V value = add_term(quality.power, change, zero);
  if (constants.varifocal && constants.iou_weighted) {
    value = value + select(positive, loss(logit, term_weights(y, p, w, infinite)), zero);
  }
  return value;
}

}  // namespace fused_logistic
