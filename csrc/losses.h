// Every loss as a struct, and `evaluate`: what a kernel computes of an element. V is a number (CUDA) or a SIMD value
// (CPU). Where elements come from and go to is the kernel's business: it hands in an Access, whose members load and
// store when they are called, so that few values are in registers at a time.
//
// A new loss is a struct here, its name and parameters in options.h, these in Settings, and a line in with_loss.
#pragma once
#include "logistic.h"
#include "problem.h"

namespace fused_logistic {

// Options in the type S of the arithmetic, with what is derived from them once per kernel.
template <class S>
struct Settings {
  S smoothing;
  S ignore_index;  // NaN, which no target equals, where none is ignored
  FocalConstants<S> focal;
};
template <class S>
FL_FN Settings<S> settings_of(const Options& options) {
  return {S(options.label_smoothing), options.has_ignore_index ? S(options.ignore_index) : S(__builtin_nan("")),
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

struct FocalLoss {
  template <class V>
  using Factors = Focal<V>;
  template <class V>
  FL_FN V weight(V w, V y, const SettingsOf<V>& settings, bool infinite) {
    const V alpha = focal_alpha(y, settings.focal);
    return infinite ? product(w, alpha) : w * alpha;
  }
  template <class V>
  FL_FN Factors<V> factors(const Logit<V>& of, V y, const SettingsOf<V>& settings) {
    return focal(of, y, settings.focal);
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

// f of the loss's struct. For the host, which chooses a kernel; static: see problem.h.
template <class F>
static auto with_loss(Loss loss, F f) {
  switch (loss) {
    case Loss::kFocal:
      return f(FocalLoss{});
    default:
      return f(Bce{});
  }
}

// ---- An element --------------------------------------------------------------------------------------------------

// Access has the inputs z(), y(), p(), w(), mask() and factor(), by which a derivative is multiplied, each asked for
// only where the output needs it, and takes out(value), the elementwise result, and term(value), which is summed.
// L is a loss's struct; plain: as is_plain in problem.h, which only Bce can be. Masked and ignored elements give 0.
// kInfinite: some weight may be infinite, see TermWeights. Kernels ask for that where a loss is not finite or a result
// is NaN: whatever infinite weights make wrong is so. Asking the weights themselves, while they are needed, would take a
// tenth more time.
template <Output kOutput, class L, bool kInfinite, class V, class Access>
FL_FN void evaluate(const Access& at, const SettingsOf<V>& settings, bool plain) {
  const V zero = splat<V>(0);
  V y = at.y(), p = splat<V>(1), w = p;
  TermWeights<V> terms;
  auto kept = w == w;
  if (plain) {
    terms = term_weights(y);
  } else {
    p = at.p();
    if constexpr (kOutput != Output::kGradWeight) w = at.w();
    kept = (y != splat<V>(settings.ignore_index)) & (at.mask() != zero);
    y = smooth(y, settings.smoothing);
    terms = term_weights(y, p, L::weight(w, y, settings, kInfinite), kInfinite);
  }
  if constexpr (kOutput == Output::kCount) {
    at.term(select(kept, splat<V>(1), zero));
    return;
  }
  const Logit<V> of = logit(at.z());
  const auto factors = L::factors(of, y, settings);
  if constexpr (has_sum(kOutput) || kOutput == Output::kLoss) {
    V value = L::value(of, factors, terms);
    if (!plain) value = select(kept, value, zero);
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
    if (!plain) value = select(kept, value, zero);
    at.out(value);
  }
}

}  // namespace fused_logistic
