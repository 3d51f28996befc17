// What autograd does with the ops of the layer: as for the elementwise ops (autograd.cpp), the gradients that the forward
// pass computed in ordinary training; under torch.func, forward-mode AD and in higher derivatives the composition of
// linear and the elementwise op, which is right to any order and keeps the logits.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"
#include "handles.h"
#include "linear.h"

namespace fused_logistic {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Loss = Tensor;
using LossAndGrads = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor>;

const auto& linear_bce_op() {
  static const auto handle = op<Loss(FL_LINEAR_PARAMETERS)>("fused_logistic::linear_bce");
  return handle;
}
const auto& linear_bce_with_grad_op() {
  static const auto handle = op<LossAndGrads(FL_LINEAR_PARAMETERS, GradMask)>("fused_logistic::linear_bce_with_grad");
  return handle;
}
const auto& linear_bce_backward_op() {
  static const auto handle =
      op<Grads(const Tensor&, FL_LINEAR_PARAMETERS, GradMask)>("fused_logistic::linear_bce_backward");
  return handle;
}

// ---- The composition ---------------------------------------------------------------------------------------------

Tensor composite_logits(const LinearArguments& a) {
  check(a);
  if (a.linear_weight.dim() == 2) return at::linear(a.input, a.linear_weight, a.linear_bias);
  const Tensor logits = at::matmul(a.input, a.linear_weight);
  return a.linear_bias.has_value() ? logits + a.linear_bias->reshape({}) : logits;
}

Tensor composite_linear(const LinearArguments& a) {
  return bce_op().call(composite_logits(a), dense_target(a), a.weight, a.pos_weight, std::nullopt, a.reduction,
                       a.label_smoothing, a.ignore_index, a.dtype, std::nullopt, std::nullopt);
}

Grads composite_linear_backward(const Tensor& grad_output, const LinearArguments& a, GradMask mask) {
  Tensor grad = bce_backward_op().call(grad_output, composite_logits(a), dense_target(a), a.weight, a.pos_weight,
                                       std::nullopt, a.reduction, a.label_smoothing, a.ignore_index,
                                       int64_t(Wrt::kLogits), std::nullopt, std::nullopt);
  const Tensor absent = at::empty({0}, a.input.options());
  if (a.linear_weight.dim() == 1) grad = grad.unsqueeze(-1);  // [..., labels]
  const Tensor weight = a.linear_weight.dim() == 1 ? a.linear_weight.unsqueeze(0) : a.linear_weight;
  c10::SymInt count = 1;  // not -1 in the shape, which is ambiguous without labels
  for (int64_t i = 0; i < a.input.dim() - 1; ++i) count *= a.input.sym_size(i);
  const Tensor rows = grad.reshape_symint({count, weight.sym_size(0)});
  const Tensor input = a.input.reshape_symint({count, a.input.sym_size(-1)});
  return {mask[0] ? at::matmul(grad, weight) : absent,
          mask[1] ? at::mm(rows.t(), input).reshape_symint(a.linear_weight.sym_sizes()) : absent,
          mask[2] && a.linear_bias.has_value() ? rows.sum(0).reshape_symint(a.linear_bias->sym_sizes()) : absent};
}

LossAndGrads composite_linear_with_grad(const LinearArguments& a, GradMask mask) {
  check_reduced("linear_bce_with_grad", a.reduction);
  return std::tuple_cat(std::make_tuple(composite_linear(a)),
                        composite_linear_backward(at::ones({}, a.input.options()), a, mask));
}

// ---- The fused gradients -----------------------------------------------------------------------------------------

// As BceFunction does for logits: for mean and sum the gradients come with the loss, are handed out once and scaled in
// place; a second backward call computes them again, and create_graph does so differentiably. fp16 gradients are always
// computed in the backward pass, with grad_output: a mean divided by its count would find them underflowed, and three
// products are too many to be thrown away under a loss scale.
struct LinearBceFunction : torch::autograd::Function<LinearBceFunction> {
  static constexpr std::array<const char*, 3> kGrads = {"grad_input", "grad_weight", "grad_bias"};

  static Tensor forward(AutogradContext* ctx, FL_LINEAR_PARAMETERS) {
    at::AutoDispatchBelowADInplaceOrView below;
    const GradMask mask = {requires_grad(input), requires_grad(linear_weight), requires_grad(linear_bias)};
    auto& data = ctx->saved_data;
    data["reduction"] = reduction;
    data["label_smoothing"] = label_smoothing;
    data["ignore_index"] = ignore_index;
    data["chunk_bytes"] = chunk_bytes;
    Tensor loss;
    if (reduction == at::Reduction::None || input.scalar_type() == at::kHalf) {
      loss = linear_bce_op().call(FL_LINEAR_ARGUMENTS);
    } else {
      auto [value, grad_input, grad_weight, grad_bias] = linear_bce_with_grad_op().call(FL_LINEAR_ARGUMENTS, mask);
      loss = std::move(value);
      data[kGrads[0]] = std::move(grad_input);  // one by one: compiled autograd takes no lists
      data[kGrads[1]] = std::move(grad_weight);
      data[kGrads[2]] = std::move(grad_bias);
    }
    ctx->save_for_backward({input, linear_weight, linear_bias.value_or(Tensor()), target,
                            crow_indices.value_or(Tensor()), col_indices.value_or(Tensor()), weight.value_or(Tensor()),
                            pos_weight.value_or(Tensor())});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const Tensor& grad_output = grad_outputs[0];
    const variable_list saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    GradMask mask;
    for (int i = 0; i < 3; ++i) mask[i] = saved[i].defined() && saved[i].requires_grad();
    variable_list grads(13);
    const bool ready = data.find(kGrads[0]) != data.end();
    // nor can they be scaled in place by a grad_output that carries a tangent or a batch (is_grads_batched)
    const bool plain = !at::GradMode::is_enabled() && !is_dual(grad_output) && !is_batched(grad_output);
    if (ready && plain) {
      for (int i = 0; i < 3; ++i) {
        Tensor computed = std::move(data.at(kGrads[i])).toTensor();
        data.erase(kGrads[i]);
        if (!mask[i]) continue;
        scale_op().call(computed, grad_output);
        grads[i] = std::move(computed);
      }
      return grads;
    }
    const auto optional = [&](int i) { return saved[i].defined() ? OptionalTensor(saved[i]) : std::nullopt; };
    auto [grad_input, grad_weight, grad_bias] = linear_bce_backward_op().call(
        grad_output, saved[0], saved[1], optional(2), saved[3], optional(4), optional(5), optional(6), optional(7),
        data["reduction"].toInt(), data["label_smoothing"].toDouble(), data["ignore_index"].toOptional<int64_t>(),
        data["chunk_bytes"].toOptional<int64_t>(), std::nullopt, mask);
    if (mask[0]) grads[0] = grad_input;
    if (mask[1]) grads[1] = grad_weight;
    if (mask[2]) grads[2] = grad_bias;
    return grads;
  }
};

// The gradients of target, weight and pos_weight are elements of the logits' shape: they come from the composition.
Tensor linear_bce_autograd(FL_LINEAR_PARAMETERS) {
  const bool others = any_requires_grad(target, weight, pos_weight);
  const bool grad = others || any_requires_grad(input, linear_weight, linear_bias);
  const bool dual = any_is_dual(input, linear_weight, linear_bias, target, weight, pos_weight);
  if (dual || others || (grad && transformed())) return composite_linear({FL_LINEAR_ARGUMENTS});
  if (grad) return LinearBceFunction::apply(FL_LINEAR_ARGUMENTS);
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_bce_op().call(FL_LINEAR_ARGUMENTS);
}

LossAndGrads linear_bce_with_grad_autograd(FL_LINEAR_PARAMETERS, GradMask output_mask) {
  if (any_requires_grad(input, linear_weight, linear_bias, target, weight, pos_weight) ||
      any_is_dual(input, linear_weight, linear_bias, target, weight, pos_weight)) {
    return composite_linear_with_grad({FL_LINEAR_ARGUMENTS}, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_bce_with_grad_op().call(FL_LINEAR_ARGUMENTS, output_mask);
}

Grads linear_bce_backward_autograd(const Tensor& grad_output, FL_LINEAR_PARAMETERS, GradMask output_mask) {
  if (any_requires_grad(grad_output, input, linear_weight, linear_bias, target, weight, pos_weight) ||
      any_is_dual(grad_output, input, linear_weight, linear_bias, target, weight, pos_weight)) {
    return composite_linear_backward(grad_output, {FL_LINEAR_ARGUMENTS}, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return linear_bce_backward_op().call(grad_output, FL_LINEAR_ARGUMENTS, output_mask);
}

// Under autocast torch computes linear in autocast's dtype and this loss in fp32 (fp64 stays).
template <c10::DispatchKey kKey, c10::DeviceType kDevice>
Tensor linear_bce_autocast(FL_LINEAR_PARAMETERS) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  const auto type = at::autocast::get_autocast_dtype(kDevice);
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(type, t, kDevice); };
  return linear_bce_op().call(
      cast(input), cast(linear_weight), linear_bias.has_value() ? OptionalTensor(cast(*linear_bias)) : std::nullopt,
      target, crow_indices, col_indices, weight, pos_weight, reduction, label_smoothing, ignore_index, chunk_bytes,
      dtype.has_value()                     ? dtype
      : target.scalar_type() == at::kDouble ? at::kDouble
                                            : at::kFloat);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_logistic, AutocastCPU, m) {
  m.impl("linear_bce", &linear_bce_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(fused_logistic, AutocastCUDA, m) {
  m.impl("linear_bce", &linear_bce_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}
TORCH_LIBRARY_IMPL(fused_logistic, Autograd, m) {
  m.impl("linear_bce", &linear_bce_autograd);
  m.impl("linear_bce_with_grad", &linear_bce_with_grad_autograd);
  m.impl("linear_bce_backward", &linear_bce_backward_autograd);
}

}  // namespace fused_logistic
