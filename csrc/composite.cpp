#include "composite.h"

#include <ATen/ATen.h>

#include <cmath>

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
    if (a.ignore_index.has_value() && holds(a.target.scalar_type(), *a.ignore_index)) {
      kept = a.target.ne(at::Scalar(*a.ignore_index));
    }
    if (a.mask.has_value())
      kept = kept.defined() ? at::logical_and(kept, *a.mask) : a.mask->expand_symint(z.sym_sizes());
    if (kept.defined()) z = at::where(kept, z, at::zeros_like(z));  // what is left out must not leak, NaN included
    if (kept.defined() && a.gamma.has_value()) y = at::where(kept, y, at::zeros_like(y));
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

Tensor unweighted_loss(const Terms& t) {
  const Tensor positive = t.positive(), negative = t.negative();
  return positive * t.softplus_minus(positive) + negative * t.softplus(negative);
}

// coefficient * value, 0 where the coefficient is 0 and the value infinite
Tensor product(const Tensor& coefficient, const Tensor& value) {
  return coefficient * at::where(at::logical_and(coefficient.eq(0), value.isinf()), at::zeros_like(value), value);
}

// alpha_t q^gamma and the derivatives of its logarithm, in the notation of logistic.h. Where c = 0, u is e, which may
// underflow; there u / e = (1 - c) + c / e stands for it, with an 1 / e that is kept finite: multiplied by c, it only
// matters to derivatives by the target.
struct FocalTerms {
  double gamma, alpha = 1, alpha_opposite = 1;
  Tensor y, negative, m, e, c, hard, grown, u, u_over_e, power;

  FocalTerms(const Arguments& a, const Terms& t) : gamma(*a.gamma) {
    if (a.alpha.has_value()) alpha = *a.alpha, alpha_opposite = 1 - *a.alpha;
    const bool is_double = t.z.scalar_type() == at::kDouble;
    const double largest = is_double ? 0x1p1023 : 0x1p127, exponent = is_double ? 700 : 80;
    const Tensor z = t.z.clamp(-largest, largest);  // no inf * 0 in what follows
    y = at::where((t.y * (1 - t.y)).lt(0), at::full_like(t.y, NAN), t.y);
    negative = z.lt(0);
    m = at::where(negative, -z, z);
    e = at::exp(-m);
    c = at::where(negative, y, 1 - y);
    hard = c.eq(0);
    const Tensor rest = at::where(negative, 1 - y, y), zero = at::zeros_like(z);
    grown = at::exp(at::where(hard, m.clamp_max(exponent), zero));
    u_over_e = rest + c * grown;
    u = at::where(hard, at::ones_like(z), c + rest * e);
    const Tensor log_u = at::where(hard, at::log(u_over_e) - m, at::log(u));
    power = at::exp(gamma * (log_u - at::log1p(e)));
  }

  Tensor alpha_t() const { return alpha * y + alpha_opposite * (1 - y); }
  Tensor slope_logits() const {
    const Tensor s = e / (1 + e);
    return gamma * (1 - 2 * y) * at::where(hard, 1 / ((1 + e) * u_over_e), s / u);
  }
  // gamma (d log q / dy) loss
  Tensor slope_target_times_loss(const Terms& t, const Tensor& loss) const {
    const Tensor positive = t.positive(), opposite = t.negative(), zero = at::zeros_like(e), one = at::ones_like(e);
    const Tensor tiny = e.eq(0), ratio = at::where(tiny, one, at::log1p(e) / at::where(tiny, one, e));
    const Tensor dominant = at::where(negative, positive, opposite) * at::where(hard, m, zero).clamp_max(700);
    const Tensor over_u = at::where(hard, ((positive + opposite) * ratio + dominant * grown) / u_over_e, loss / u);
    return product(at::where(negative, gamma * one, -gamma * one) * (1 - e), over_u);
  }
  // value times q^gamma and alpha_t
  Tensor weigh(const Tensor& value) const { return product(power, alpha_t() * value); }
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
  Tensor loss = terms.weighted(unweighted_loss(terms));
  if (a.gamma.has_value()) loss = FocalTerms(a, terms).weigh(loss);
  loss = terms.keep(loss);
  const auto type = loss_dtype(a, dtype);
  if (a.reduction == at::Reduction::None) return loss.to(type);
  if (a.reduction == at::Reduction::Sum) return loss.sum().to(type);
  return (terms.kept.defined() ? loss.sum() / count(a, terms) : loss.mean()).to(type);
}

Tensor composite_backward(const Tensor& grad_output, const Arguments& a, Wrt wrt) {
  check(a);
  const Terms terms(a);
  std::optional<FocalTerms> focal;
  if (a.gamma.has_value()) focal.emplace(a, terms);
  const Tensor positive = terms.positive(), negative = terms.negative();
  const Tensor& like = derivative(a, int64_t(wrt)).second;
  Tensor result;
  switch (wrt) {
    case Wrt::kLogits:
      result = negative * at::sigmoid(terms.z) - positive * at::sigmoid(-terms.z);
      if (focal) result = focal->weigh(result + product(focal->slope_logits(), unweighted_loss(terms)));
      result = terms.weighted(result);
      break;
    case Wrt::kTarget: {
      const Tensor one = at::ones_like(terms.z), p = terms.p.defined() ? terms.p * one : one;
      result = terms.p.defined() ? p * terms.softplus_minus(p) - terms.softplus(one) : -terms.z;
      if (focal) {
        const Tensor loss = unweighted_loss(terms);
        result = focal->weigh(result + focal->slope_target_times_loss(terms, loss)) +
                 product((focal->alpha - focal->alpha_opposite) * focal->power, loss);
      }
      result = terms.weighted(result * (1 - a.label_smoothing));
      break;
    }
    case Wrt::kWeight:
      result = unweighted_loss(terms);
      if (focal) result = focal->weigh(result);
      break;
    case Wrt::kPosWeight:
      result = terms.y * terms.softplus_minus(terms.y);
      if (focal) result = focal->weigh(result);
      result = terms.weighted(result);
      break;
  }
  // kept twice: neither NaN in what is left out nor an infinite grad_output may reach a derivative
  result = terms.keep(terms.keep(result) * grad_output.to(result.scalar_type()));
  // where nothing is left, every element is 0 and stays it
  if (a.reduction == at::Reduction::Mean) result = result / count(a, terms).clamp_min(1);
  return result.to(like.scalar_type());
}

std::tuple<Tensor, Tensor> composite_with_grad(const Arguments& a, DTypeArgument dtype) {
  check_reduced("bce_with_grad", a.reduction);
  return {composite_loss(a, dtype), composite_backward(at::ones({}, a.logits.options()), a, Wrt::kLogits)};
}

}  // namespace fused_logistic
