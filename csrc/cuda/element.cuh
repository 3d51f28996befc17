// One element in registers.
#pragma once
#include "../device.h"
#include "../losses.h"

namespace fused_logistic {

// As evaluate asks for it.
template <class C>
struct ElementAccess {
  const C logit, target, pos_weight, weight, kept, factor_of_derivative;
  C &result, &summand;
  LossGroup<C>& losses;
  FL_METHOD C z() const { return logit; }
  FL_METHOD C y() const { return target; }
  FL_METHOD C p() const { return pos_weight; }
  FL_METHOD C w() const { return weight; }
  FL_METHOD C mask() const { return kept; }
  FL_METHOD C factor() const { return factor_of_derivative; }
  FL_METHOD void out(C value) const { result = value; }
  FL_METHOD void term(C value) const { summand = value; }
  FL_METHOD LossGroup<C> group() const { return losses; }
  FL_METHOD void group(const LossGroup<C>& group) const { losses = group; }
};

// kCareful: as for infinite weights or groups that overflow. Else infinite weights are asked about where a result is NaN.
template <Output kOutput, class L, Terms kTerms, bool kCareful, class C>
FL_DEVICE void evaluate_element(const ElementAccess<C>& element, const Settings<C>& settings) {
  evaluate<kOutput, L, kTerms, kCareful, /*kHard=*/false, C>(element, settings);
  if constexpr (has_weights(kTerms) && !kCareful) {
    const C result = has_elements(kOutput) ? element.result : element.summand;
    if (result != result) evaluate<kOutput, L, kTerms, /*kAgain=*/true, /*kHard=*/false, C>(element, settings);
  }
}

}  // namespace fused_logistic
