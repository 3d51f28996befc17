// A layer with one output, as its kernels are given it, and the order of its sums, on every backend, whatever the number of
// threads or the grid:
// A dot product is kDotLanes sums over the features, folded in halves. Rows are divided into parts. Within one the weight's
// gradient adds one row after the other, in the dot products' type for rows_per_flush rows, then in fp64; the losses and the
// bias's gradient add one row after the other, in fp64. The sums of the parts are added in order.
#pragma once
#include "problem.h"

namespace fused_logistic {

// The logit of row i is input[i] . linear_weight + bias. Rows are read once: what is derived from a few of them is derived
// while they are near.
struct LinearProblem {
  Problem loss;  // the loss of the rows' logits; its own logits are not read
  const void* input = nullptr;
  DType input_dtype = DType::kFloat32;
  int64_t features = 0, row_stride = 0;  // in elements
  // CPU: in the type of the dot products, fp64 for fp64 input and else fp32; padded with zeros to a multiple of kDotLanes.
  // CUDA: as it lies, in the type of the input.
  const void* linear_weight = nullptr;
  double bias = 0;  // CPU
  int64_t rows_per_part = 0;
  double* loss_and_grad_bias = nullptr;  // [parts, 2]
  double* grad_weight = nullptr;         // [parts, features], or null where it is not asked for
  void* grad_input = nullptr;            // [rows, features] in the type of the input, or null
};

constexpr int64_t kDotLanes = 32;
constexpr int64_t padded(int64_t features) { return (features + kDotLanes - 1) / kDotLanes * kDotLanes; }

// How many rows the CPU takes at a time: few enough to be read a second time from the cache.
constexpr int64_t kMaxBlockRows = 256;
constexpr int64_t block_rows(int64_t features, int64_t element_bytes) {
  const int64_t bytes = features * element_bytes < 1 ? 1 : features * element_bytes, rows = (int64_t(32) << 10) / bytes;
  return rows > kMaxBlockRows ? kMaxBlockRows : rows >= 4 ? rows : bytes <= (64 << 10) ? 4 : 1;
}
// Whole blocks, of at least 64 rows.
constexpr int64_t rows_per_flush(int64_t features, int64_t element_bytes) {
  const int64_t block = block_rows(features, element_bytes);
  return (64 + block - 1) / block * block;
}
// Whole blocks, by the sizes alone: enough parts for many threads, and few enough that their sums of the weight's gradient
// stay small whatever the number of rows. static: see problem.h.
static constexpr int64_t rows_per_part(int64_t rows, int64_t features, int64_t element_bytes) {
  const int64_t block = block_rows(features, element_bytes), blocks = (rows + block - 1) / block;
  const int64_t affordable = (int64_t(8) << 20) / ((features < 1 ? 1 : features) * int64_t(sizeof(double)));
  const int64_t parts = affordable < 8     ? 8
                        : affordable > 256 ? 256
                                           : affordable,
                of_each = (blocks + parts - 1) / parts;
  return (of_each < 1 ? 1 : of_each) * block;
}
static constexpr int64_t parts_of(const LinearProblem& problem) {
  return (problem.loss.numel + problem.rows_per_part - 1) / problem.rows_per_part;
}

}  // namespace fused_logistic
