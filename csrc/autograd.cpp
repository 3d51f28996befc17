// What autograd does with the ops: the fused gradient in ordinary training; under torch.func, forward-mode AD and in
// higher derivatives the differentiable composition (composite.h), which is right to any order.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"
#include "handles.h"

namespace fused_logistic {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// fp16 has too few exponents to hold gradients divided by the number of elements and then multiply them by the loss scale
// of mixed precision: unless grad_output is 1 they are computed again, with both factors. Elsewhere than on the CPU
// looking at grad_output would wait for the device, so there fp16 is always computed in the backward pass.
bool may_compute_grad_early(const Tensor& logits) { return logits.scalar_type() != at::kHalf || logits.is_cpu(); }
bool may_scale(const Tensor& grad, const Tensor& grad_output) {
  return grad.scalar_type() != at::kHalf || grad_output.item<double>() == 1;
}

// For mean and sum the forward pass computes the gradient for the logits as well, in the same pass over memory. The
// backward pass hands that tensor out, scaled in place by grad_output. Its new owner may change it, so it is handed out
// once: a second backward call (retain_graph) computes it again, and so does create_graph, differentiably.
struct BceFunction : torch::autograd::Function<BceFunction> {
  static Tensor forward(AutogradContext* ctx, FL_PARAMETERS, DTypeArgument dtype) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["reduction"] = reduction;
    if (label_smoothing != 0) ctx->saved_data["label_smoothing"] = label_smoothing;
    if (ignore_index.has_value()) ctx->saved_data["ignore_index"] = ignore_index;
    Tensor loss;
    if (reduction == at::Reduction::None || !logits.requires_grad() || !may_compute_grad_early(logits)) {
      loss = bce_op().call(FL_ARGUMENTS, dtype);
    } else {
      Tensor grad;
      std::tie(loss, grad) = bce_with_grad_op().call(FL_ARGUMENTS, dtype);
      ctx->saved_data["grad"] = std::move(grad);
    }
    ctx->save_for_backward(
        {logits, target, weight.value_or(Tensor()), pos_weight.value_or(Tensor()), mask.value_or(Tensor())});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const Tensor& grad_output = grad_outputs[0];
    const variable_list saved = ctx->get_saved_variables();
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); };
    const auto derivative = [&](Wrt wrt) {
      auto& data = ctx->saved_data;
      const double label_smoothing = data.count("label_smoothing") ? data["label_smoothing"].toDouble() : 0;
      std::optional<int64_t> ignore_index;
      if (data.count("ignore_index")) ignore_index = data["ignore_index"].toInt();
      return bce_backward_op().call(grad_output, saved[0], saved[1], optional(saved[2]), optional(saved[3]),
                                    optional(saved[4]), data["reduction"].toInt(), label_smoothing, ignore_index,
                                    int64_t(wrt));
    };
    const auto needed = [&](int64_t i) { return saved[i].defined() && saved[i].requires_grad(); };
    variable_list grads(9);
    if (needed(0)) {
      const auto ready = ctx->saved_data.find("grad");
      // nor can it be scaled in place by a grad_output that carries a tangent or a batch (is_grads_batched)
      const bool plain = !at::GradMode::is_enabled() && !is_dual(grad_output) && !is_batched(grad_output);
      if (ready != ctx->saved_data.end() && plain && may_scale(saved[0], grad_output)) {
        grads[0] = std::move(ready->second).toTensor();
        ctx->saved_data.erase(ready);
        scale_op().call(grads[0], grad_output);
      } else {
        grads[0] = derivative(Wrt::kLogits);
      }
    }
    if (needed(1)) grads[1] = derivative(Wrt::kTarget);
    if (needed(2)) grads[2] = derivative(Wrt::kWeight).sum_to_size(saved[2].sizes());
    if (needed(3)) grads[3] = derivative(Wrt::kPosWeight).sum_to_size(saved[3].sizes());
    return grads;
  }
};

Tensor bce_autograd(FL_PARAMETERS, DTypeArgument dtype) {
  const bool grad = any_requires_grad(logits, target, weight, pos_weight);
  if (any_is_dual(logits, target, weight, pos_weight) || (grad && transformed())) {
    return composite_loss({FL_ARGUMENTS}, dtype);
  }
  if (grad) return BceFunction::apply(FL_ARGUMENTS, dtype);
  at::AutoDispatchBelowADInplaceOrView below;
  return bce_op().call(FL_ARGUMENTS, dtype);
}

std::tuple<Tensor, Tensor> bce_with_grad_autograd(FL_PARAMETERS, DTypeArgument dtype) {
  if (any_requires_grad(logits, target, weight, pos_weight) || any_is_dual(logits, target, weight, pos_weight)) {
    return composite_with_grad({FL_ARGUMENTS}, dtype);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return bce_with_grad_op().call(FL_ARGUMENTS, dtype);
}

Tensor bce_backward_autograd(const Tensor& grad_output, FL_PARAMETERS, int64_t wrt) {
  if (any_requires_grad(grad_output, logits, target, weight, pos_weight) ||
      any_is_dual(grad_output, logits, target, weight, pos_weight)) {
    return composite_backward(grad_output, {FL_ARGUMENTS}, Wrt(wrt));
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return bce_backward_op().call(grad_output, FL_ARGUMENTS, wrt);
}

// Under autocast torch computes this loss in fp32 (fp64 stays) and returns that. The kernels compute in fp32 anyway:
// only the dtype of the result changes, and nothing is cast.
DTypeArgument autocast_dtype(const Tensor& target, DTypeArgument dtype) {
  return dtype.has_value() ? dtype : target.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
template <c10::DispatchKey kKey>
Tensor bce_autocast(FL_PARAMETERS, DTypeArgument dtype) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  return bce_op().call(FL_ARGUMENTS, autocast_dtype(target, dtype));
}
template <c10::DispatchKey kKey>
std::tuple<Tensor, Tensor> bce_with_grad_autocast(FL_PARAMETERS, DTypeArgument dtype) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kKey);
  return bce_with_grad_op().call(FL_ARGUMENTS, autocast_dtype(target, dtype));
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_logistic, AutocastCPU, m) {
  m.impl("bce", &bce_autocast<c10::DispatchKey::AutocastCPU>);
  m.impl("bce_with_grad", &bce_with_grad_autocast<c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(fused_logistic, AutocastCUDA, m) {
  m.impl("bce", &bce_autocast<c10::DispatchKey::AutocastCUDA>);
  m.impl("bce_with_grad", &bce_with_grad_autocast<c10::DispatchKey::AutocastCUDA>);
}
TORCH_LIBRARY_IMPL(fused_logistic, Autograd, m) {
  m.impl("bce", &bce_autograd);
  m.impl("bce_with_grad", &bce_with_grad_autograd);
  m.impl("bce_backward", &bce_backward_autograd);
}

}  // namespace fused_logistic
