// The arguments of bce_tile_ beside logits and options, and what is asked for by their being there.
#pragma once
#include "tensors.h"

namespace fused_logistic {

// losses: take the losses. Else loss_sum, to which their sum is added, and with wants_grad the gradient stands in the logits'
// place; without loss_sum the gradient alone does. bias_sum: to this the gradient's columns are added.
#define FL_TILE_OPERANDS                                                                                              \
  const OptionalTensor &losses, const OptionalTensor &loss_sum, const OptionalTensor &bias_sum, const Tensor &target, \
      const OptionalTensor &crow_indices, const OptionalTensor &col_indices, const OptionalTensor &weight,            \
      const OptionalTensor &pos_weight, const OptionalTensor &mask, const OptionalTensor &grad_output,                \
      const OptionalTensor &count, double scale, int64_t first_label, bool whole, bool wants_grad

inline Output tile_output(const OptionalTensor& losses, const OptionalTensor& loss_sum, bool wants_grad) {
  require(!loss_sum.has_value() || (loss_sum->scalar_type() == ScalarType::Double && loss_sum->numel() == 1),
          "bce_tile_", "loss_sum is not one float64");
  if (losses.has_value()) return Output::kLoss;
  if (!loss_sum.has_value()) return Output::kGradLogits;
  return wants_grad ? Output::kLossSumAndGrad : Output::kLossSum;
}

}  // namespace fused_logistic
