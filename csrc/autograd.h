// What the autograd kernels of all ops ask about their operands.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "iteration.h"

namespace fused_logistic {

inline bool requires_grad(const Tensor& tensor) { return tensor.requires_grad(); }
inline bool requires_grad(const OptionalTensor& tensor) { return tensor.has_value() && tensor->requires_grad(); }
inline bool is_dual(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }
inline bool is_dual(const OptionalTensor& tensor) { return tensor.has_value() && is_dual(*tensor); }

template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}
template <class... Tensors>
bool any_is_dual(const Tensors&... tensors) {
  return (is_dual(tensors) || ...);
}

inline bool is_batched(const Tensor& tensor) {
  using c10::DispatchKey;
  return tensor.key_set().has_any(
      c10::DispatchKeySet({DispatchKey::Batched, DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper}));
}

// Whether a torch.func transform is active: its levels differentiate what they see, which must not be a C++ Function.
inline bool transformed() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

}  // namespace fused_logistic
