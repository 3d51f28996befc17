// The op of a tile of pairs: from torch's tensors to Pairs, for every backend.
#pragma once
#include "pairs.h"
#include "tensors.h"

namespace fused_logistic {

#define FL_PAIRS                                                                                                   \
  Tensor &similarities, const OptionalTensor &grad, Tensor &sums, const Tensor &scale, const OptionalTensor &bias, \
      std::optional<int64_t> diagonal, double factor, bool wants_grad
#define FL_GIVEN_PAIRS similarities, grad, sums, scale, bias, diagonal, factor, wants_grad

// sums: {loss, grad_scale, grad_bias} in fp64, to which the tile's are added. grad: where the gradient goes; else, if it is
// wanted, into the similarities' place. diagonal: column less row of the positives; without it there are none.
inline Pairs pairs_of(FL_PAIRS) {
  const char* const op = "pairs_tile_";
  const auto type = similarities.scalar_type();
  require(similarities.dim() == 2 && similarities.is_contiguous() &&
              (type == ScalarType::Float || type == ScalarType::Double),
          op, "similarities are no whole matrix of fp32 or fp64");
  const auto number = [&](const Tensor& t) {
    require(t.numel() == 1 && t.scalar_type() == type && t.device() == similarities.device(), op,
            "scale or bias is not one number of the similarities' dtype and device");
    return data_of(t, op);
  };
  require(sums.numel() == kPairSums && sums.is_contiguous() && sums.scalar_type() == ScalarType::Double &&
              sums.device() == similarities.device(),
          op, "sums are not 3 float64 numbers on the similarities' device");
  Pairs tile;
  tile.numel = similarities.numel();
  require(tile.numel < int64_t(1) << 31, op, "there are 2^31 similarities or more");
  tile.similarities = similarities.const_data_ptr();
  tile.dtype = dtype_of(type);
  tile.scale = number(scale);
  if (bias.has_value()) tile.bias = number(*bias);
  if (diagonal.has_value()) tile.positives = diagonal_of(similarities.size(0), similarities.size(1), *diagonal);
  const Tensor& out = grad.has_value() ? *grad : similarities;
  require(out.dim() == 2 && out.size(0) == similarities.size(0) && out.size(1) == similarities.size(1) &&
              out.is_contiguous() && out.device() == similarities.device() &&
              (out.scalar_type() == type || (type == ScalarType::Float && (out.scalar_type() == ScalarType::Half ||
                                                                           out.scalar_type() == ScalarType::BFloat16))),
          op, "grad is not like the similarities, of their dtype or, for fp32, of one of 16 bits");
  if (wants_grad) tile.grad = out.mutable_data_ptr();
  tile.grad_dtype = dtype_of(out.scalar_type());
  tile.factor = factor;
  return tile;
}

}  // namespace fused_logistic
