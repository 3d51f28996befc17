// Every loss as a struct, and `evaluate`: what a kernel computes of an element. V is a number (CUDA) or a SIMD value
// (CPU). Where elements come from and go to is the kernel's business: it hands in an Access, whose members load and
// store when they are called, so that few values are in registers at a time.
//
// A new loss is a struct here, its functions in a file of their own if they are more than what is in logistic.h, its name and
// parameters in options.h, these in Settings, and a line in with_loss.
#pragma once
#include "asymmetric.h"
#include "focal.h"
#include "problem.h"
#include "quality.h"

namespace fused_logistic {

// ---- Settings ------------------------------------------------------------------------------------------------------

// A problem's options in the type S of the arithmetic, with what is derived from them once per kernel.
template <class S>
struct Settings {
  S smoothing;
  S ignore_index;  // NaN, which no target equals, where none is ignored
  FocalConstants<S> focal;
  QualityConstants<S> quality;
  AsymmetricConstants<S> asymmetric;
  bool ignore_nan;
};
template <class S>
FL_FN Settings<S> settings_of(const Problem& problem) {
  const Options& options = problem.options;
  const bool compared = problem.target.classes > 0;  // class indices, of which the ignored ones come as NaN
  // -0 instead of 0: y + 0 would make a target of -0 another than where nothing is smoothed
  const S smoothing = options.label_smoothing == 0 ? S(-0.0) : S(options.label_smoothing);
  return {smoothing,
          options.has_ignore_index && !compared ? S(options.ignore_index) : S(__builtin_nan("")),
          focal_constants<S>(options.gamma, options.alpha, options.alpha_opposite),
          {exponent_of<S>(options.gamma), S(options.alpha), options.is_varifocal, options.iou_weighted},
          asymmetric_constants<S>(options.gamma, options.gamma_pos, options.clip),
          options.ignore_nan || compared};
}
template <class V>
using SettingsOf = Settings<typename Value<V>::Scalar>;

// ---- The losses --------------------------------------------------------------------------------------------------
// Each has, of the smoothed target y, pos_weight p and weight w:
//   kWhole       whether its exponents are 0, 1, 2, 3 or 4, and it is for arithmetic in fp32
//   kHardIsLess  whether it has much less to do where all targets are known to be 0 or 1
//   factors      Factors: what the value and the derivatives share beside the Logit. (If it held the Logit too, GCC would keep
//                both in memory: the focal loss takes 45 % longer with AVX2.)
//   value, and the derivatives by_logit (times factor), by_target, by_pos_weight; by weight it is the value for w = 1

struct Bce {
  static constexpr bool kWhole = false, kHardIsLess = false;
  template <class V>
  struct Factors {};
  template <bool kHard, class V>
  FL_FN Factors<V> factors(const Logit<V>&, V, const SettingsOf<V>&) {
    return {};
  }
  template <class V>
  FL_FN V value(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms) {
    return loss(of, terms);
  }
  template <class V>
  FL_FN V by_logit(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms, V factor) {
    return grad_logit(of, terms, factor);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, V, V p, V w, const SettingsOf<V>&, bool infinite) {
    return grad_target(of, p, w, infinite);
  }
  template <class V>
  FL_FN V by_pos_weight(const Logit<V>& of, const Factors<V>&, V y, V w, bool infinite) {
    return grad_pos_weight(of, y, w, infinite);
  }
};

// A power, and a weight of the loss's own, times a loss that L has as plain and plain_by_logit.
template <class L>
struct Powered {
  // A power of 0 makes 0 of any loss, of one that is infinite too. Where a weight may turn out not to be finite it must make NaN
  // first, so that the kernel computes again: it looks at the sum alone where the gradient is made with it.
  template <class V>
  FL_FN V times(V power, V plain, const TermWeights<V>& terms) {
    const V zero = splat<V>(0);
    return terms.unsure ? fma(power, plain, zero) : add_term(power, plain, zero);
  }
  template <class V, class Factors>
  FL_FN V value(const Logit<V>& of, const Factors& factors, const TermWeights<V>& terms) {
    return times(factors.power, L::plain(of, factors, terms), terms);
  }
  template <class V, class Factors>
  FL_FN V by_logit(const Logit<V>& of, const Factors& factors, const TermWeights<V>& terms, V factor) {
    const V slope = times(factors.slope, L::plain(of, factors, terms), terms);
    const V plain = L::plain_by_logit(of, factors, terms), change = fma(factors.power, plain, slope);
    return (terms.infinite ? unless_nan(change, add_term(factors.power, plain, slope)) : change) * factor;
  }
  template <class V, class Factors>
  FL_FN V by_pos_weight(const Logit<V>& of, const Factors& factors, V y, V w, bool infinite) {
    return add_term(factors.power, grad_pos_weight(of, y, w, infinite), splat<V>(0));
  }
};
// Powered, of the plain loss.
template <class L>
struct PoweredBce : Powered<L> {
  template <class V>
  using Factors = Power<V>;
  template <class V>
  FL_FN V plain(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms) {
    return loss(of, terms);
  }
  template <class V>
  FL_FN V plain_by_logit(const Logit<V>& of, const Factors<V>&, const TermWeights<V>& terms) {
    return grad_logit(of, terms, splat<V>(1));
  }
};

template <bool kWholePowers>
struct FocalLossOf : PoweredBce<FocalLossOf<kWholePowers>> {
  static constexpr bool kWhole = kWholePowers, kHardIsLess = false;
  template <bool kHard, class V>
  FL_FN Power<V> factors(const Logit<V>& of, V y, const SettingsOf<V>& settings) {
    return focal<kWhole>(of, y, settings.focal);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, V y, V p, V w, const SettingsOf<V>& settings, bool infinite) {
    return focal_grad_target(of, y, p, w, settings.focal, infinite);
  }
};

template <bool kWholePowers>
struct QualityLossOf : PoweredBce<QualityLossOf<kWholePowers>> {
  static constexpr bool kWhole = kWholePowers, kHardIsLess = false;
  template <bool kHard, class V>
  FL_FN Power<V> factors(const Logit<V>& of, V y, const SettingsOf<V>& settings) {
    return quality<kWhole>(of, y, settings.quality);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, V y, V p, V w, const SettingsOf<V>& settings, bool infinite) {
    return quality_grad_target(of, y, p, w, settings.quality, infinite);
  }
};

template <bool kWholePowers>
struct AsymmetricLossOf : Powered<AsymmetricLossOf<kWholePowers>> {
  static constexpr bool kWhole = kWholePowers, kHardIsLess = kWhole;
  template <class V>
  using Factors = Asymmetric<V>;
  template <bool kHard, class V>
  FL_FN Factors<V> factors(const Logit<V>& of, V y, const SettingsOf<V>& settings) {
    return asymmetric<kWhole, kHard>(of, y, settings.asymmetric);
  }
  template <class V>
  FL_FN V plain(const Logit<V>& of, const Factors<V>& factors, const TermWeights<V>& terms) {
    return asymmetric_loss(of, terms, factors);
  }
  template <class V>
  FL_FN V plain_by_logit(const Logit<V>& of, const Factors<V>& factors, const TermWeights<V>& terms) {
    return asymmetric_grad_logit(of, terms, factors);
  }
  template <class V>
  FL_FN V by_target(const Logit<V>& of, V y, V p, V w, const SettingsOf<V>& settings, bool infinite) {
    return asymmetric_grad_target(of, y, p, w, settings.asymmetric, infinite);
  }
};

template <bool kWhole, template <bool> class L, class F>
static auto with_powers(const Problem& problem, F f) {
  if constexpr (kWhole) {
    if (problem.options.has_whole_powers && !problem.compute_double) return f(L<true>{});
  }
  return f(L<false>{});
}
// f of the loss's struct, of the one for whole exponents where they are and kWhole: outputs that are rare have none. For the
// host, which chooses a kernel; static: see problem.h.
template <bool kWhole, class F>
static auto with_loss(const Problem& problem, F f) {
  switch (problem.options.loss) {
    case Loss::kFocal:
      return with_powers<kWhole, FocalLossOf>(problem, f);
    case Loss::kQuality:
      return with_powers<kWhole, QualityLossOf>(problem, f);
    case Loss::kAsymmetric:
      return with_powers<kWhole, AsymmetricLossOf>(problem, f);
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
// kAgain: with what is rare in mind, a weight that may be infinite (see TermWeights), or groups that overflow or have an
// infinite logit, so that each loss is summed by itself. Kernels ask for that where a loss is not finite or a result is NaN:
// whatever infinite weights make wrong is so. Asking the weights themselves, while they are needed, would take a tenth more time.
// kHard: the targets are known to be 0 or 1 after smoothing, but for those that are left out, which may be anything.
template <Output kOutput, class L, Terms kTerms, bool kAgain, bool kHard, class V, class Access>
FL_FN void evaluate(const Access& at, const SettingsOf<V>& settings) {
  constexpr bool kHasOptions = has_options(kTerms), kInfinite = kAgain && has_weights(kTerms);
  const V zero = splat<V>(0);
  V y = at.y(), p = splat<V>(1), w = p;
  auto kept = w == w;
  if constexpr (kHasOptions) {
    kept = (y != splat<V>(settings.ignore_index)) & (at.mask() != zero);
    if (settings.ignore_nan) kept = kept & (y == y);
    y = smooth(y, settings.smoothing);
  }
  TermWeights<V> terms = term_weights(y);
  if constexpr (has_weights(kTerms)) {
    p = at.p();
    if constexpr (kOutput != Output::kGradWeight) w = at.w();
    terms = term_weights(y, p, w, kInfinite);
  }
  if constexpr (kOutput == Output::kCount) {
    at.term(select(kept, splat<V>(1), zero));
    return;
  }
  const Logit<V> of = logit(at.z());
  const auto factors = L::template factors<kHard>(of, y, settings);
  if constexpr (is_grouped<L>(kOutput, kTerms) && !kAgain) {
    const LossGroup<V> before = at.group();
    LossGroup<V> group = with</*kLookedAt=*/true>(before, of, terms);
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
      value = L::by_target(of, y, p, w, settings, kInfinite) * splat<V>(1 - settings.smoothing) * factor;
    } else if constexpr (kOutput == Output::kGradWeight) {
      value = L::value(of, factors, terms) * factor;
    } else if constexpr (kOutput == Output::kGradPosWeight) {
      value = L::by_pos_weight(of, factors, y, w, kInfinite) * factor;
    } else {
      value = L::by_logit(of, factors, terms, factor);
    }
    if constexpr (kHasOptions) value = select(kept, value, zero);
    at.out(value);
  }
}

}  // namespace fused_logistic
