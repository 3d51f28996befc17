// Every loss as a struct, and `evaluate`: what a kernel computes of an element. V is a number (CUDA) or a SIMD value
// (CPU). Where elements come from and go to is the kernel's business: it hands in an Access, whose members load and
// store when they are called, so that few values are in registers at a time.
//
// A new loss is a struct here with its functions, its name and parameters in options.h, these in Settings, and a line in
// with_loss.
#pragma once
#include "logistic.h"
#include "problem.h"

namespace fused_logistic {

// ---- The focal loss ----------------------------------------------------------------------------------------------
// The loss times q^gamma, where q = 1 - p_t = y sigma(-z) + (1 - y) sigma(z) is the probability given to the other label,
// and times alpha_t = alpha y + (1 - alpha) (1 - y), which goes into the weights (Lin, Goyal, Girshick, He and Dollar,
// "Focal loss for dense object detection"). With c = y for z < 0, 1 - y otherwise, and u = c + (1 - c) e:
//   q = u / (1 + e),   log q = log u - l,   q^gamma = exp(gamma log q),
//   q'/q = (1 - 2 y) s / u,   d log q / dy = -sign(z) (1 - e) / u.
// A target outside of [0, 1] may make q negative, or larger than 1. The power is then that of |q|, negative where q is
// and gamma is odd, which for whole gamma is q^gamma; the derivatives stay as they are, with the sign of q.
// A target of 0 or 1 needs no logarithm: where c = 1, log q = -l; where c = 0, u is e and log q = -m - l.
// log q has a part that is exact and one that is at most about 1, and the product with gamma is kept in two parts too,
// so that the relative error of q^gamma is of the order of gamma units in the last place, not of gamma |log q|.

// gamma in two parts; the logarithm from which on down q^gamma is 0; the sign of q^gamma where q is negative; the weights
// of y and of 1 - y in alpha_t, 1 and 1 without alpha. Made once per kernel from what the user gave.
template <class S>
struct FocalConstants {
  S gamma, gamma_low, log_lowest, sign, alpha, alpha_opposite;
};
FL_FN bool is_whole(double x) { return (x + 0x1p52) - 0x1p52 == x; }  // of 0 <= x
template <class S>
FL_FN FocalConstants<S> focal_constants(double gamma, double alpha, double alpha_opposite) {
  const double lowest = gamma == 0 ? -0x1p126 : 1.5 * double(Coefficients<S>::exp_lowest) / gamma;
  return {S(gamma),
          S(gamma - double(S(gamma))),
          S(lowest < -0x1p126 ? -0x1p126 : lowest),
          S(is_whole(gamma) && !is_whole(gamma / 2) ? -1 : 1),
          S(alpha),
          S(alpha_opposite)};
}

template <class V>
FL_FN V focal_alpha(V y, const FocalConstants<typename Value<V>::Scalar>& constants) {
  if (constants.alpha == 1 && constants.alpha_opposite == 1) return splat<V>(1);  // y + (1 - y) is not, for a large y
  return fma(splat<V>(constants.alpha), y, splat<V>(constants.alpha_opposite) * (splat<V>(1) - y));
}

// What the focal loss and its derivatives share: c, u, q^gamma, and whether any target is neither 0 nor 1. Where none is,
// which is the rule, the logarithm and the division by u = 1 are left out: a quarter of the time, and no bit.
// A u of 0 with c other than 0 is the rounded sum of two numbers that cancel: far less than its error stands for it, so
// that q^gamma q'/q is q' for gamma = 1. A |u| that is too large for log_unit counts as the largest that is not.
template <class V>
struct Focal {
  V c, u, power;
  bool soft;
};
// At most 1.7 (float) and 1.7 (double) ulp times 1 + gamma, where it is a normal number.
// q^gamma for a gamma of 0, 1, 2, 3 or 4, as nearly all are, by multiplication: q = c + (1 - 2 c) s. What s lost when it was
// rounded is the remainder of its division, and what d = 1 + e lost, times 1 / d = 1 - s; `rest` of q, and of its power in the
// first order. Where a target outside of [0, 1] may make q cancel it is u (1 - s), so that it keeps its ratio to u.
template <class V>
FL_FN V focal_whole(const Logit<V>& logit, V c, V u, typename Value<V>::Scalar gamma, bool outside) {
  using S = typename Value<V>::Scalar;
  const V zero = splat<V>(0), one = splat<V>(1), s = sigma_minus(logit.e), d = one + logit.e;
  const V k = fma(splat<V>(-2), c, one), rest = k * (fma(-s, logit.e - (d - one), fma(-s, d, logit.e)) * (one - s));
  V q = fma(k, s, c);
  if (outside) q = select((c < zero) | (one < c), u * (one - s), q);
  V slope = one, power = q;  // of the rest, and of q
  if (gamma == S(0)) {
    return one;
  } else if (gamma == S(2)) {
    slope = q + q;
    power = q * q;
  } else if (gamma == S(3)) {
    slope = splat<V>(3) * (q * q);
    power = q * q * q;
  } else if (gamma == S(4)) {
    slope = splat<V>(4) * (q * q * q);
    power = (q * q) * (q * q);
  }
  const V corrected = fma(slope, rest, power);
  return outside ? select((c < zero) | (one < c), power, corrected) : corrected;
}

// At most 2.6 (float) and 2.6 (double) ulp times 1 + gamma: the error of q^gamma where it is a normal number. So here and
// below for gamma up to 8. kWhole: for what focal_whole is for.
template <bool kWhole, class V>
FL_FN Focal<V> focal(const Logit<V>& logit, V y, const FocalConstants<typename Value<V>::Scalar>& constants) {
  const V zero = splat<V>(0), opposite = splat<V>(1) - y, gamma = splat<V>(constants.gamma);
  const auto negative = logit.z < zero;
  const V c = select(negative, y, opposite);
  V u = fma(select(negative, opposite, y), logit.e, c);
  TwoParts<V> of_u = {zero, zero};
  const bool soft = Value<V>::any((c != zero) & (c != splat<V>(1)));
  bool outside = false;  // of [0, 1], some target
  if (soft) {
    using C = Coefficients<typename Value<V>::Scalar>;
    outside = Value<V>::any((c < zero) | (splat<V>(1) < c));
    if (outside) u = select((u == zero) & (c != zero), splat<V>(C::exp_unbias), u);
    if constexpr (!kWhole) of_u = log_unit(outside ? -at_least(minus_absolute(u), splat<V>(-C::log_scale / 4)) : u);
  }
  if constexpr (kWhole) return {c, u, focal_whole(logit, c, u, constants.gamma, outside), soft};
  const V high = at_least(select(c == zero, logit.minus_m, of_u.high), splat<V>(constants.log_lowest));
  const V low = select(c == zero, zero, of_u.low) - log1p_unit(logit.e);
  const V log_q = high + low, x = gamma * log_q;
  V rest = fma(gamma, log_q, -x);
  rest = fma(gamma, (high - log_q) + low, rest);
  rest = fma(splat<V>(constants.gamma_low), log_q, rest);
  V power = exp_two_parts(x, rest, outside);
  if (outside) power = power * select(u < zero, splat<V>(constants.sign), splat<V>(1));
  return {c, u, power, soft};
}

// At most 2.7 (float) and 2.7 (double) ulp times 1 + gamma without alpha and weights, which add theirs as above.
template <class V>
FL_FN V focal_loss(const Logit<V>& logit, const TermWeights<V>& weights, const Focal<V>& focal) {
  return add_term(focal.power, loss(logit, weights), splat<V>(0));
}

// At most 5.0 (float) and 5.0 (double) ulp times 1 + gamma of the largest of y sigma(-z), (1 - y) sigma(z) and
// gamma (q'/q) loss, each times q^gamma.
// d focal / dz = q^gamma (d loss / dz + gamma (q'/q) loss), times factor. Where c = 0, s / u = s / e = 1 - s.
template <class V>
FL_FN V focal_grad_logit(const Logit<V>& logit, const TermWeights<V>& weights, const Focal<V>& focal, V y, V gamma,
                         V factor) {
  const V s = sigma_minus(logit.e), one = splat<V>(1), zero = splat<V>(0);
  const V slope = gamma * fma(splat<V>(-2), y, one) * select(focal.c == zero, one - s, focal.soft ? s / focal.u : s);
  const V value = add_term(slope, loss(logit, weights), grad_logit(logit, weights, one));
  return add_term(focal.power, value, zero) * factor;
}

// At most 4.0 (float) and 4.0 (double) ulp times 1 + gamma of q^gamma z or q^gamma gamma loss / u, the larger.
// d focal / dy = q^gamma (alpha_t d loss / dy + alpha_t' loss + alpha_t gamma (d log q / dy) loss), the losses without
// alpha_t. Where c = 0 the loss is (a + b) l, and (a + b) l / e stays finite.
template <class V>
FL_FN V focal_grad_target(const Logit<V>& logit, const Focal<V>& focal, V y, V p, V w,
                          const FocalConstants<typename Value<V>::Scalar>& constants, bool infinite = false) {
  const V zero = splat<V>(0), alpha = focal_alpha(y, constants), gamma = splat<V>(constants.gamma);
  const TermWeights<V> weights = term_weights(y, p, w, infinite);
  const V whole = loss(logit, weights);
  const V over_u = select(focal.c == zero, weights.sum * log1p_ratio(logit.e), whole / focal.u);
  const V slope = alpha * select(logit.z < zero, gamma, -gamma) * (splat<V>(1) - logit.e);
  V value = add_term(slope, over_u, grad_target(logit, p, infinite ? product(w, alpha) : w * alpha, infinite));
  value = add_term(splat<V>(constants.alpha - constants.alpha_opposite), whole, value);
  return add_term(focal.power, value, zero);
}

// ---- Settings ------------------------------------------------------------------------------------------------------

// Options in the type S of the arithmetic, with what is derived from them once per kernel.
template <class S>
struct Settings {
  S smoothing;
  S ignore_index;  // NaN, which no target equals, where none is ignored
  FocalConstants<S> focal;
};
template <class S>
FL_FN Settings<S> settings_of(const Options& options) {
  // -0 instead of 0: y + 0 would make a target of -0 another than where nothing is smoothed
  const S smoothing = options.label_smoothing == 0 ? S(-0.0) : S(options.label_smoothing);
  return {smoothing, options.has_ignore_index ? S(options.ignore_index) : S(__builtin_nan("")),
          focal_constants<S>(options.gamma, options.alpha, options.alpha_opposite)};
}
template <class V>
using SettingsOf = Settings<typename Value<V>::Scalar>;

// ---- The losses --------------------------------------------------------------------------------------------------
// Each has, of the smoothed target y, pos_weight p and weight w:
//   weight(w)    the weight of the element's terms, from which their TermWeights are made; infinite: as there
//   Factors      what the value and the derivatives share beside the Logit. (If it held the Logit too, GCC would keep
//                both in memory: the focal loss takes 45 % longer with AVX2.)
//   value, and the derivatives by_logit (times factor), by_target, by_pos_weight; by weight it is the value for w = 1

struct Bce {
  template <class V>
  struct Factors {};
  template <class V>
  FL_FN V weight(V w, V, const SettingsOf<V>&, bool) {
    return w;
  }
  template <class V>
  FL_FN Factors<V> factors(const Logit<V>&, V, const SettingsOf<V>&) {
    return {};
  }
  template <class V>
  FL_FN V value(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms) {
    return loss(of, terms);
  }
  template <class V>
  FL_FN V by_logit(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms, V, V factor,
                   const SettingsOf<V>&) {
    return grad_logit(of, terms, factor);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, const Factors<V>&, V, V p, V w, const SettingsOf<V>&, bool infinite) {
    return grad_target(of, p, w, infinite);
  }
  template <class V>
  FL_FN V by_pos_weight(const Logit<V>& of, const Factors<V>&, V y, V w, const SettingsOf<V>&, bool infinite) {
    return grad_pos_weight(of, y, w, infinite);
  }
};

template <bool kWhole>
struct FocalLossOf {
  template <class V>
  using Factors = Focal<V>;
  template <class V>
  FL_FN V weight(V w, V y, const SettingsOf<V>& settings, bool infinite) {
    const V alpha = focal_alpha(y, settings.focal);
    return infinite ? product(w, alpha) : w * alpha;
  }
  template <class V>
  FL_FN Factors<V> factors(const Logit<V>& of, V y, const SettingsOf<V>& settings) {
    return focal<kWhole>(of, y, settings.focal);
  }
  template <class V>
  FL_FN V value(const Logit<V>& of, const Factors<V>& factors, const TermWeights<V>& terms) {
    return focal_loss(of, terms, factors);
  }
  template <class V>
  FL_FN V by_logit(const Logit<V>& of, const Factors<V>& factors, const TermWeights<V>& terms, V y, V factor,
                   const SettingsOf<V>& settings) {
    return focal_grad_logit(of, terms, factors, y, splat<V>(settings.focal.gamma), factor);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, const Factors<V>& factors, V y, V p, V w, const SettingsOf<V>& settings,
                    bool infinite) {
    return focal_grad_target(of, factors, y, p, w, settings.focal, infinite);
  }
  template <class V>
  FL_FN V by_pos_weight(const Logit<V>& of, const Factors<V>& factors, V y, V w, const SettingsOf<V>& settings,
                        bool infinite) {
    return add_term(factors.power, grad_pos_weight(of, y, weight(w, y, settings, infinite), infinite), splat<V>(0));
  }
};

using FocalLoss = FocalLossOf<false>;
using FocalLossOfWholeGamma = FocalLossOf<true>;

// f of the loss's struct. For the host, which chooses a kernel; static: see problem.h.
template <class F>
static auto with_loss(Loss loss, F f) {
  switch (loss) {
    case Loss::kFocal:
      return f(FocalLoss{});
    case Loss::kFocalOfWholeGamma:
      return f(FocalLossOfWholeGamma{});
    default:
      return f(Bce{});
  }
}

// Whether the losses of L are summed as groups.
template <class L>
static constexpr bool is_grouped(Output output, Terms terms) {
  return std::is_same_v<L, Bce> && !has_weights(terms) &&
         (output == Output::kLossSum || output == Output::kLossSumAndGrad);
}
static_assert(kJoined * kChunk / kLanes <= kGroup, "a group has no more losses than its q has room for");

// ---- An element --------------------------------------------------------------------------------------------------

// Access has the inputs z(), y(), p(), w(), mask() and factor(), by which a derivative is multiplied, each asked for
// only where the output needs it, and takes out(value), the elementwise result, and what is summed: term(value) or, where
// losses are grouped, group(), to which the element is added, and group(value).
// L is a loss's struct. Masked and ignored elements give 0.
// kAgain: with what is rare in mind, a weight that may be infinite (see TermWeights) or groups that overflow, so that each
// loss is summed by itself. Kernels ask for that where a loss is not finite or a result is NaN: whatever infinite weights
// make wrong is so. Asking the weights themselves, while they are needed, would take a tenth more time.
template <Output kOutput, class L, Terms kTerms, bool kAgain, class V, class Access>
FL_FN void evaluate(const Access& at, const SettingsOf<V>& settings) {
  constexpr bool kHasOptions = has_options(kTerms), kInfinite = kAgain && has_weights(kTerms);
  const V zero = splat<V>(0);
  V y = at.y(), p = splat<V>(1), w = p;
  auto kept = w == w;
  if constexpr (kHasOptions) {
    kept = (y != splat<V>(settings.ignore_index)) & (at.mask() != zero);
    y = smooth(y, settings.smoothing);
  }
  TermWeights<V> terms = term_weights(y);
  if constexpr (has_weights(kTerms)) {
    p = at.p();
    if constexpr (kOutput != Output::kGradWeight) w = at.w();
  }
  if constexpr (has_weights(kTerms) || !std::is_same_v<L, Bce>) {  // another loss has weights of its own
    terms = term_weights(y, p, L::weight(w, y, settings, kInfinite), kInfinite);
  }
  if constexpr (kOutput == Output::kCount) {
    at.term(select(kept, splat<V>(1), zero));
    return;
  }
  const Logit<V> of = logit(at.z());
  const auto factors = L::factors(of, y, settings);
  if constexpr (is_grouped<L>(kOutput, kTerms) && !kAgain) {
    const LossGroup<V> before = at.group();
    LossGroup<V> group = with(before, of, terms);
    if constexpr (kHasOptions) group = {select(kept, group.q, before.q), select(kept, group.linear, before.linear)};
    at.group(group);
  } else if constexpr (has_sum(kOutput) || kOutput == Output::kLoss) {
    V value = L::value(of, factors, terms);
    if constexpr (kHasOptions) value = select(kept, value, zero);
    if constexpr (kOutput == Output::kLoss) at.out(value);
    if constexpr (has_sum(kOutput)) at.term(value);
  }
  if constexpr (has_elements(kOutput) && kOutput != Output::kLoss) {
    const V factor = at.factor();
    V value;
    if constexpr (kOutput == Output::kGradTarget) {
      value = L::by_target(of, factors, y, p, w, settings, kInfinite) * splat<V>(1 - settings.smoothing) * factor;
    } else if constexpr (kOutput == Output::kGradWeight) {
      value = L::value(of, factors, terms) * factor;
    } else if constexpr (kOutput == Output::kGradPosWeight) {
      value = L::by_pos_weight(of, factors, y, w, settings, kInfinite) * factor;
    } else {
      value = L::by_logit(of, factors, terms, y, factor, settings);
    }
    if constexpr (kHasOptions) value = select(kept, value, zero);
    at.out(value);
  }
}

}  // namespace fused_logistic
