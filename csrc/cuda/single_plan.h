// What the kernels of a layer with one output are given, and their launch geometry: a pure function of the problem and of
// how much shared memory there is, which the bits do not depend on.
#pragma once
#include "../linear.h"
#include "plan.h"

namespace fused_logistic {

// A block takes one part of the rows, tile after tile, in a pipeline: while some warps take the dot products of one tile,
// others have the losses of the tile before and the sums of the one before that.
constexpr int kDotThreads = 128, kSumThreads = 256, kLossThreads = 64;
constexpr int kSingleThreads = kDotThreads + kSumThreads + kLossThreads + 2 * 32;
constexpr int kStages = 6;  // tiles in shared memory: the three at work, and three on their way
constexpr int kMaxTileRows = kLossThreads;
constexpr int kColumns = 4;  // neighbouring columns of a thread
constexpr int kMaxVectors = 2;
constexpr int kStaticShared = 10 << 10;  // more than the kernels' own arrays have

struct SinglePlan {
  int64_t parts;  // blocks of kSingleThreads; 0: there are no rows
  int64_t flush_rows;
  int64_t scratch, workspace;  // doubles: the first `scratch` of them are that; then those of the parts' sums
  int tile_rows;
  int vectors;  // of kColumns columns, of a thread that adds up; 0: as many as it takes, of rows that stay where they are
  int row_bytes;    // of a row in shared memory, padded to kDotLanes columns, with zeros
  int chunk_bytes;  // of an asynchronous copy; 0: rows are aligned to nothing that one can copy
  int shared_bytes;
  Division by_chunks;     // of a row
  bool whole, whole_out;  // whether rows of the input, and of its gradient, are aligned to vectors
};

struct SingleLaunch {
  LinearProblem problem;
  SinglePlan plan;
  Output output;
  const void* linear_bias;  // one number of the input's type; null: 0
  const double* count;      // on the device: the number of rows that a mean is taken over; null: divisor
  double divisor;
  void* scratch;  // for vectors = 0: [parts, features in whole vectors], in the type of the dot products
  void *loss, *grad_weight, *grad_bias;  // null where not asked for; gradients in the type of the input
  DType loss_dtype;
};

// half: what a block may have of shared memory if two are to be on a multiprocessor; most: what any may have.
inline SinglePlan plan_single(const LinearProblem& problem, bool wants_grad_weight, int64_t half, int64_t most) {
  const int64_t features = problem.features, size = size_of(problem.input_dtype), dot_size = size == 8 ? 8 : 4;
  const int64_t stride = problem.row_stride * size, columns = (features + kColumns - 1) / kColumns * kColumns;
  const auto is_aligned_to = [&](int64_t bytes) {
    return reinterpret_cast<uintptr_t>(problem.input) % bytes == 0 && stride % bytes == 0;
  };
  SinglePlan p = {};
  p.parts = parts_of(problem);
  p.flush_rows = rows_per_flush(features, size);
  const int vector = vector_alignment(kColumns * int(size));
  p.whole = is_aligned_to(vector);
  p.whole_out = features % kColumns == 0;
  int64_t row = padded(features) * size, tile_rows = kMaxTileRows;
  if (size == 2 && row % 128 == 0) row += 64;  // so that neighbouring rows lie in other banks
  const int64_t sums = padded(features) * (dot_size + int64_t(sizeof(double))), taken = sums + kStaticShared;
  if (features > 0 && features <= kMaxVectors * kColumns * kSumThreads && taken + kStages * row <= most) {
    const int64_t fitting = (half - taken) / (kStages * row), wanted = (16 << 10) / row < 4 ? 4 : (16 << 10) / row;
    tile_rows = fitting < wanted ? fitting : wanted;
    tile_rows = tile_rows < 1 ? 1 : tile_rows > kMaxTileRows ? kMaxTileRows : tile_rows;
    // a kernel less for fp64 losses of other logits, which are rare
    p.vectors = features <= kColumns * kSumThreads && problem.loss.compute_double == (size == 8) ? 1 : 2;
    p.row_bytes = int(row);
    p.chunk_bytes = is_aligned_to(16) ? 16 : is_aligned_to(8) ? 8 : is_aligned_to(4) ? 4 : 0;
    p.by_chunks = division_by(padded(features) * size / (p.chunk_bytes > 0 ? p.chunk_bytes : 16));
    p.shared_bytes = int(kStages * tile_rows * row + sums);
  } else {  // few enough bytes to be read again from the cache
    tile_rows = (64 << 10) / (stride < 1 ? 1 : stride);
    tile_rows = tile_rows < 4 ? 4 : tile_rows > kMaxTileRows ? kMaxTileRows : tile_rows;
  }
  p.tile_rows = int(tile_rows);
  const int64_t of_weight = wants_grad_weight ? p.parts : 0;
  p.scratch = p.vectors == 0 ? of_weight * columns : 0;
  p.workspace = p.scratch + 2 * p.parts + of_weight * features;
  return p;
}

}  // namespace fused_logistic
