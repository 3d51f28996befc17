// The sigmoid contrastive loss (SigLIP) of a tile of pairs, images by texts: what a kernel computes of a pair, and how the
// torch glue describes a tile to it.
//
// A pair's logit is z = scale x + bias, x being its similarity; its target is 1 on one diagonal and else 0. With g = dloss/dz:
//   d loss / dx = scale g,   d loss / dscale = sum g x,   d loss / dbias = sum g
// A kernel gives g, and leaves the scale to whoever adds up the products with it: g alone is at most 1.
#pragma once
#include "logistic.h"
#include "problem.h"

namespace fused_logistic {

// ---- A pair --------------------------------------------------------------------------------------------------------

enum PairSum { kLossOfPairs, kGradScale, kGradBias, kPairSums };

// What a lane adds up.
template <class V>
struct PairSums {
  LossGroup<V> losses;
  V grad_scale, grad_bias;
};

// Adds a pair with the similarity x and the logit z to the sums; returns g where it is asked for.
template <bool kGrad, class V>
FL_FN V add_pair(V x, V z, V y, PairSums<V>& sums) {
  const Logit<V> of = logit(z);
  const TermWeights<V> terms = term_weights(y);
  sums.losses = with</*kLookedAt=*/false>(sums.losses, of, terms);
  if constexpr (!kGrad) return splat<V>(0);
  const V grad = grad_logit(of, terms, splat<V>(1));
  sums.grad_scale = fma(grad, x, sums.grad_scale);
  sums.grad_bias = sums.grad_bias + grad;
  return grad;
}

// The order of the sums is that of problem.h over the flattened tile: groups of losses; the other two downwards in each lane,
// in the type of the arithmetic, and then in fp64, neighbours first. A chunk of fp32 whose sums are not finite is added up
// once more, all of it in fp64: so are logits that only fp32 is too small for.

// ---- A tile --------------------------------------------------------------------------------------------------------

// The positives: elements first, first + step, ... before end of the flattened tile, which has less than 2^31.
struct Diagonal {
  uint32_t first = 0, step = 1, end = 0;
};
constexpr uint32_t kNoPositive = 0xffffffffu;
// That of the pairs (row, row + offset).
constexpr Diagonal diagonal_of(int64_t rows, int64_t columns, int64_t offset) {
  const int64_t row = offset < 0 ? -offset : 0, end = rows < columns - offset ? rows : columns - offset;
  if (row >= end) return {};
  const int64_t step = columns + 1;
  return {uint32_t(row * step + offset), uint32_t(step), uint32_t((end - 1) * step + offset + 1)};
}
// The first positive from i on, and the one behind a positive.
FL_FN uint32_t positive_from(const Diagonal& of, uint32_t i) {
  const uint32_t steps = i <= of.first ? 0 : (i - of.first + of.step - 1) / of.step;
  const uint32_t positive = of.first + steps * of.step;
  return positive < of.end ? positive : kNoPositive;
}
FL_FN uint32_t positive_after(const Diagonal& of, uint32_t positive) {
  return positive + of.step < of.end ? positive + of.step : kNoPositive;
}

struct Pairs {
  int64_t numel = 0;
  const void* similarities = nullptr;
  DType dtype = DType::kFloat32;                 // of the similarities and of the arithmetic: fp32 or fp64
  const void *scale = nullptr, *bias = nullptr;  // one number of that type where the tile is; no bias: 0
  Diagonal positives;
  void* grad = nullptr;  // g times factor; null: not asked for. It may take the similarities' place
  DType grad_dtype = DType::kFloat32;
  double factor = 1;
};

}  // namespace fused_logistic
