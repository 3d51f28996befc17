#include "composite.h"

#include <ATen/ATen.h>

namespace fused_logistic {
namespace {

// The operands in the type of the arithmetic, with label smoothing and the kept elements worked in.
struct Terms {
  Tensor z, y, p, w, kept;  // p, w and kept are undefined where absent

  explicit Terms(const Arguments& a) {
    const bool is_double = a.logits.scalar_type() == at::kDouble || a.target.scalar_type() == at::kDouble;
    const auto type = is_double ? at::kDouble : at::kFloat;
    z = a.logits.to(type);
    y = a.target.to(type);
    if (a.ignore_index.has_value()) kept = a.target.ne(at::Scalar(*a.ignore_index));
    if (a.mask.has_value())
      kept = kept.defined() ? at::logical_and(kept, *a.mask) : a.mask->expand_symint(z.sym_sizes());
    if (kept.defined()) z = at::where(kept, z, at::zeros_like(z));  // what is left out must not leak, NaN included
    if (a.label_smoothing != 0) y = y * (1 - a.label_smoothing) + a.label_smoothing / 2;
    if (a.pos_weight.has_value()) p = a.pos_weight->to(type);
    if (a.weight.has_value()) w = a.weight->to(type);
  }

  Tensor positive() const { return p.defined() ? p * y : y; }
  Tensor negative() const { return 1 - y; }
  // softplus(-z) and softplus(z), 0 where the coefficient is 0 and the value infinite
  Tensor softplus_minus(const Tensor& coefficient) const { return -at::log_sigmoid(finite(coefficient)); }
  Tensor softplus(const Tensor& coefficient) const { return -at::log_sigmoid(-finite(coefficient)); }
  Tensor weighted(const Tensor& value) const { return w.defined() ? w * value : value; }
  Tensor keep(const Tensor& value) const {
    return kept.defined() ? at::where(kept, value, at::zeros_like(value)) : value;
  }

 private:
  Tensor finite(const Tensor& coefficient) const {
    return at::where(at::logical_and(coefficient.eq(0), z.isinf()), at::zeros_like(z), z);
  }
};

// The number of elements over which the mean is taken.
Tensor count(const Arguments& a, const Terms& terms) {
  return terms.kept.defined()
             ? terms.kept.sum().to(terms.z.scalar_type())
             : at::scalar_tensor(a.logits.sym_numel().guard_int(__FILE__, __LINE__), terms.z.options());
}

}  // namespace

Tensor composite_loss(const Arguments& a, DTypeArgument dtype) {
  check(a);
  const Terms terms(a);
  const Tensor positive = terms.positive(), negative = terms.negative();
  const Tensor loss =
      terms.keep(terms.weighted(positive * terms.softplus_minus(positive) + negative * terms.softplus(negative)));
  const auto type = loss_dtype(a, dtype);
  if (a.reduction == at::Reduction::None) return loss.to(type);
  if (a.reduction == at::Reduction::Sum) return loss.sum().to(type);
  return (terms.kept.defined() ? loss.sum() / count(a, terms) : loss.mean()).to(type);
}

Tensor composite_backward(const Tensor& grad_output, const Arguments& a, Wrt wrt) {
  check(a);
  const Terms terms(a);
  const Tensor positive = terms.positive(), negative = terms.negative();
  Tensor result, like = a.logits;
  switch (wrt) {
    case Wrt::kLogits:
      result = terms.weighted(negative * at::sigmoid(terms.z) - positive * at::sigmoid(-terms.z));
      break;
    case Wrt::kTarget: {
      const Tensor one = at::ones_like(terms.z), p = terms.p.defined() ? terms.p * one : one;
      result = terms.weighted((p * terms.softplus_minus(p) - terms.softplus(one)) * (1 - a.label_smoothing));
      if (!terms.p.defined()) result = terms.weighted(-terms.z * (1 - a.label_smoothing));
      like = a.target;
      break;
    }
    case Wrt::kWeight:
      result = positive * terms.softplus_minus(positive) + negative * terms.softplus(negative);
      like = *a.weight;
      break;
    case Wrt::kPosWeight:
      result = terms.weighted(terms.y * terms.softplus_minus(terms.y));
      like = *a.pos_weight;
      break;
  }
  result = terms.keep(result) * grad_output.to(result.scalar_type());
  if (a.reduction == at::Reduction::Mean) result = result / count(a, terms);
  return result.to(like.scalar_type());
}

std::tuple<Tensor, Tensor> composite_with_grad(const Arguments& a, DTypeArgument dtype) {
  return {composite_loss(a, dtype), composite_backward(at::ones({}, a.logits.options()), a, Wrt::kLogits)};
}

}  // namespace fused_logistic
