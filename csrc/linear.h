// The whole layer, linear + sigmoid + binary cross entropy: what its ops, their autograd and its two computations (one
// output, many labels) share.
#pragma once
#include <array>

#include "iteration.h"

namespace fused_logistic {

// The arguments that all ops of the layer share. A sparse target is given by its parts: the values are `target`.
struct LinearArguments {
  const Tensor& input;          // [..., features]
  const Tensor& linear_weight;  // [labels, features], or [features] for logits without a dimension of labels
  const OptionalTensor& linear_bias;
  const Tensor& target;  // of the logits' shape; sparse: [nnz]
  const OptionalTensor& crow_indices;
  const OptionalTensor& col_indices;
  const OptionalTensor& weight;
  const OptionalTensor& pos_weight;
  int64_t reduction;
  double label_smoothing;
  std::optional<int64_t> ignore_index;
  std::optional<int64_t> chunk_bytes;
  DTypeArgument dtype;

  bool sparse() const { return crow_indices.has_value(); }
};
#define FL_LINEAR_PARAMETERS                                                                                 \
  const Tensor &input, const Tensor &linear_weight, const OptionalTensor &linear_bias, const Tensor &target, \
      const OptionalTensor &crow_indices, const OptionalTensor &col_indices, const OptionalTensor &weight,   \
      const OptionalTensor &pos_weight, int64_t reduction, double label_smoothing,                           \
      std::optional<int64_t> ignore_index, std::optional<int64_t> chunk_bytes, DTypeArgument dtype
#define FL_LINEAR_ARGUMENTS                                                                            \
  input, linear_weight, linear_bias, target, crow_indices, col_indices, weight, pos_weight, reduction, \
      label_smoothing, ignore_index, chunk_bytes, dtype

using GradMask = std::array<bool, 3>;  // which of the gradients of input, linear_weight and linear_bias are asked for

// What comes out: the loss, unless grad_output was given; the gradients that were asked for.
struct LinearResult {
  Tensor loss, grad_input, grad_weight, grad_bias;
};

// The layer as matrices: input [rows, features], linear_weight [labels, features], bias [labels]; target, weight,
// pos_weight and grad_output are [rows or 1, labels or 1] (a sparse target's values stay as they are).
struct Layer {
  Layer(const LinearArguments& arguments, const OptionalTensor& grad_output);

  const LinearArguments& arguments;
  int64_t rows = 0, features = 0, labels = 0;
  at::DimVector logits_shape;
  bool sparse = false;  // whether target is the values of a sparse one
  Tensor input, linear_weight, target;
  OptionalTensor bias, weight, pos_weight, grad_output;
  bool want_grad(const GradMask& mask) const { return mask[0] || mask[1] || mask[2]; }
};

// The positive elements of a sparse target: sorted, each place once, what was there several times added up.
struct Positives {
  Positives(const LinearArguments& arguments, int64_t rows, int64_t labels);
  Tensor row, column, value;
};

// How many elements the mean is taken over.
double mean_count(const Layer& layer, const Positives* positives);

void check(const LinearArguments& arguments);
at::ScalarType loss_dtype(const LinearArguments& arguments);
// The target as a tensor of the logits' shape, differentiable in the values of a sparse one.
Tensor dense_target(const LinearArguments& arguments);
// Where chunk_bytes is not given. On the CPU 8 MiB, which the last-level cache holds, took up to 15 % less time than 32 MiB
// with few features, and as much with 512, over shapes from 64 x 1,000,000 to 65,536 x 1,000.
inline int64_t default_chunk_bytes(const Tensor& input) { return int64_t(input.is_cpu() ? 8 : 32) << 20; }

// One output on the CPU: one pass over the input (linear_single.cpp). Any number on any device: torch's matrix products
// around the elementwise kernels, a chunk of the logits at a time (linear_chunks.cpp).
LinearResult single_output(const Layer& layer, GradMask mask);
LinearResult chunked(const Layer& layer, GradMask mask);

}  // namespace fused_logistic
