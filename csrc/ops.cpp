// The ops: schemas, the CPU entry points, and the composition for devices without a kernel.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "composite.h"
#include "parallel.h"

namespace fused_logistic {
namespace {

// ---- CPU ---------------------------------------------------------------------------------------------------------

// The number of elements over which the mean is taken.
double divisor(const Problem& problem, const Arguments& arguments) {
  if (arguments.reduction != at::Reduction::Mean) return 1;
  return arguments.selects() ? run(problem, Output::kCount) : double(problem.numel);
}

Tensor scalar(double value, const Tensor& like, at::ScalarType dtype) {
  const Tensor result = at::empty({}, like.options().dtype(dtype));
  switch (dtype) {
    case at::kDouble:
      *result.mutable_data_ptr<double>() = value;
      break;
    case at::kFloat:
      *result.mutable_data_ptr<float>() = float(value);
      break;
    case at::kHalf:
      *result.mutable_data_ptr<at::Half>() = at::Half(float(value));
      break;
    default:
      *result.mutable_data_ptr<at::BFloat16>() = at::BFloat16(float(value));
  }
  return result;
}

Tensor bce_cpu(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  const at::ScalarType type = loss_dtype(arguments, dtype);
  if (reduction == at::Reduction::None) {
    Tensor loss = iteration.allocate_out(type);
    run(iteration.problem, Output::kLoss);
    return loss;
  }
  const double sum = run(iteration.problem, Output::kLossSum);
  return scalar(sum / divisor(iteration.problem, arguments), logits, type);
}

std::tuple<Tensor, Tensor> bce_with_grad_cpu(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  check_reduced("bce_with_grad", reduction);
  const double count = divisor(iteration.problem, arguments);
  iteration.problem.scale = 1 / count;
  Tensor grad = iteration.allocate_out(logits.scalar_type());
  const double sum = run(iteration.problem, Output::kLossSumAndGrad);
  return {scalar(sum / count, logits, loss_dtype(arguments, dtype)), grad};
}

Tensor bce_backward_cpu(const Tensor& grad_output, FL_PARAMETERS, int64_t wrt, FL_FOCAL_PARAMETERS) {
  const Arguments arguments{FL_ARGUMENTS, gamma, alpha};
  Iteration iteration(arguments);
  iteration.set_grad_output(grad_output);
  iteration.problem.scale = 1 / divisor(iteration.problem, arguments);
  const auto [output, operand] = derivative(arguments, wrt);
  Tensor grad = iteration.allocate_out(operand.scalar_type());
  run(iteration.problem, output);
  return grad;
}

// Multiplies by a scalar tensor in place, and touches nothing where the scalar is 1.
void scale_cpu(Tensor& self, const Tensor& factor) {
  const bool is_one = factor.scalar_type() == at::kFloat && factor.is_cpu() ? *factor.const_data_ptr<float>() == 1
                                                                            : factor.item<double>() == 1;
  if (!is_one) self.mul_(factor);
}

// ---- Devices without a kernel ------------------------------------------------------------------------------------

// After the composition, whose checks come first: for a sparse tensor no kernel is missing.
template <class Result>
Result with_warning(Result result, const Tensor& logits) {
  TORCH_WARN_ONCE("fused_logistic: no kernel for device ", logits.device(), " in this build; computing with torch's ",
                  "operations, correct but slower");
  return result;
}
Tensor bce_fallback(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  return with_warning(composite_loss({FL_ARGUMENTS, gamma, alpha}, dtype), logits);
}
std::tuple<Tensor, Tensor> bce_with_grad_fallback(FL_PARAMETERS, DTypeArgument dtype, FL_FOCAL_PARAMETERS) {
  return with_warning(composite_with_grad({FL_ARGUMENTS, gamma, alpha}, dtype), logits);
}
Tensor bce_backward_fallback(const Tensor& grad_output, FL_PARAMETERS, int64_t wrt, FL_FOCAL_PARAMETERS) {
  return with_warning(composite_backward(grad_output, {FL_ARGUMENTS, gamma, alpha}, Wrt(wrt)), logits);
}
void scale_fallback(Tensor& self, const Tensor& factor) { self.mul_(factor); }

}  // namespace
}  // namespace fused_logistic

// reduction: 0 none, 1 mean, 2 sum (an int: DTensor caches sharding decisions by ints, not by strings).
// gamma: the focal loss, with alpha or without; none: the plain loss.
#define FL_SCHEMA                                                                                         \
  "Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? mask, int reduction, float " \
  "label_smoothing, int? ignore_index, "
#define FL_FOCAL_SCHEMA ", float? gamma=None, float? alpha=None) -> "

TORCH_LIBRARY(fused_logistic, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("bce(" FL_SCHEMA "ScalarType? dtype" FL_FOCAL_SCHEMA "Tensor", tags);
  m.def("bce_with_grad(" FL_SCHEMA "ScalarType? dtype" FL_FOCAL_SCHEMA "(Tensor loss, Tensor grad_logits)", tags);
  m.def("bce_backward(Tensor grad_output, " FL_SCHEMA "int wrt" FL_FOCAL_SCHEMA "Tensor", tags);
  m.def("scale_(Tensor(a!) self, Tensor factor) -> ()", tags);
}
TORCH_LIBRARY_IMPL(fused_logistic, CPU, m) {
  m.impl("bce", &fused_logistic::bce_cpu);
  m.impl("bce_with_grad", &fused_logistic::bce_with_grad_cpu);
  m.impl("bce_backward", &fused_logistic::bce_backward_cpu);
  m.impl("scale_", &fused_logistic::scale_cpu);
}
TORCH_LIBRARY_IMPL(fused_logistic, CompositeExplicitAutograd, m) {
  m.impl("bce", &fused_logistic::bce_fallback);
  m.impl("bce_with_grad", &fused_logistic::bce_with_grad_fallback);
  m.impl("bce_backward", &fused_logistic::bce_backward_fallback);
  m.impl("scale_", &fused_logistic::scale_fallback);
}
