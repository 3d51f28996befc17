// The ops as C++ calls them, through the dispatcher.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include "composite.h"

namespace fused_logistic {

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
inline const auto& bce_op() {
  static const auto handle = op<Tensor(FL_PARAMETERS, DTypeArgument)>("fused_logistic::bce");
  return handle;
}
inline const auto& bce_with_grad_op() {
  static const auto handle =
      op<std::tuple<Tensor, Tensor>(FL_PARAMETERS, DTypeArgument)>("fused_logistic::bce_with_grad");
  return handle;
}
inline const auto& bce_backward_op() {
  static const auto handle = op<Tensor(const Tensor&, FL_PARAMETERS, int64_t)>("fused_logistic::bce_backward");
  return handle;
}
inline const auto& scale_op() {
  static const auto handle = op<void(Tensor&, const Tensor&)>("fused_logistic::scale_");
  return handle;
}

}  // namespace fused_logistic
