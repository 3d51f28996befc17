// The loss and its derivatives composed of torch's own differentiable operations: what the ops are to autograd, at any
// order, and on devices that have no kernel here.
#pragma once
#include "iteration.h"

namespace fused_logistic {

Tensor composite_loss(const Arguments& arguments, DTypeArgument dtype);
std::tuple<Tensor, Tensor> composite_with_grad(const Arguments& arguments, DTypeArgument dtype);
// d (reduced loss) / d wrt, elementwise, times grad_output.
Tensor composite_backward(const Tensor& grad_output, const Arguments& arguments, Wrt wrt);

}  // namespace fused_logistic
