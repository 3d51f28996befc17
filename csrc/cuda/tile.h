// A tile of a layer's logits: how its kernels are launched, as a pure function of how it lies, and what they take. No device
// code and no torch. What they compute is in tile.cuh.
#pragma once
#include <algorithm>

#include "plan.h"

struct CUstream_st;  // cudaStream_t points to it

namespace fused_logistic {

// Element (row, column) of an operand is data[row * lie.row + column * lie.column].
struct Lie {
  int64_t row = 0, column = 0;
  Reading reading = Reading::kConstant;  // kShared: one a row; never kRepeated
};
inline Lie lie_of(const Operand& operand, int64_t row, int64_t column) {
  if (is_constant(operand)) return {};
  Lie lie = {row, column, Reading::kGathered};
  if (column == 0) lie.reading = Reading::kShared;
  if (column == 1 && row * size_of(operand.dtype) % vector_alignment(kPerThread * size_of(operand.dtype)) == 0 &&
      is_aligned(operand.data, operand.dtype)) {
    lie.reading = Reading::kFull;
  }
  return lie;
}

struct Lies {
  Lie logits, target, weight, pos_weight, mask, grad_output, out;
};

// The matrix is cut into strips, 4 columns wide, each of which is a thread's. 2^shift threads stand beside each other, the
// rest of the block's below them.
constexpr int kTileThreads = 128;
constexpr int kTileGroup = 8;          // rows, whose losses are grouped
constexpr int kMostStripRows = 64;     // fp32 column sums are short
constexpr int64_t kTileBlocks = 4096;  // as many as keep a GPU busy, if there are rows for them
static_assert(kTileGroup * kPerThread <= 32, "a group has no more losses than its q has room for");

struct TileLaunch {
  // Its operands have no `inner`, and a `size` of 1 if they are constant; logits never are. out: null, or where the
  // gradient (the logits' place) or the losses go.
  Problem problem;
  int64_t rows, columns;
  Lies lies;
  // A sparse target: problem.target has its values, each row's columns rising; these are the matrix's from first_column on.
  const int64_t *crow_indices, *col_indices;
  int64_t first_column;
  const double* count;  // on the device: the gradient is divided by it; null: times problem.scale
  // Where the sums go, or null: they are added to what is there. bias_sum: double or float.
  double* loss_sum;
  void* bias_sum;
  DType bias_dtype;
  // Workspace, where there is such a sum: a number a block; a row of columns, in the type of the arithmetic, a row of blocks.
  double* loss_sums;
  void* column_sums;
  // By tile_plan:
  int shift, strip_rows;
  int64_t column_blocks, row_blocks;
};

struct TilePlan {
  Output output;  // of the kernel: without losses or without gradients it is the kernel of both
  Terms terms;
  bool typed;
};

inline TilePlan tile_plan(TileLaunch& launch, Output output) {
  const Problem& of = launch.problem;
  const bool sparse = launch.crow_indices != nullptr;
  int64_t width = kTileThreads;
  launch.shift = 7;
  while (!sparse && launch.shift > 0 && width / 2 * kPerThread >= launch.columns) width /= 2, --launch.shift;
  const int64_t strips = kTileThreads / width;
  const int64_t most = launch.rows * launch.columns / (kTileBlocks * kTileThreads * kPerThread);
  launch.strip_rows = int(std::clamp<int64_t>(most / kTileGroup * kTileGroup, kTileGroup, kMostStripRows));
  launch.column_blocks = (launch.columns + width * kPerThread - 1) / (width * kPerThread);
  launch.row_blocks = (launch.rows + launch.strip_rows * strips - 1) / (launch.strip_rows * strips);

  TilePlan plan = {output, terms_of(of, output), false};
  const bool single = is_constant(of.grad_output);
  if (output == Output::kLossSum || (output == Output::kGradLogits && single)) plan.output = Output::kLossSumAndGrad;
  if (plan.terms == Terms::kWeights || of.options.loss != Loss::kBce) plan.terms = Terms::kAll;
  const DType logits = of.logits.dtype, target = of.target.dtype;
  const auto weight = [&](const Operand& operand) {
    return is_constant(operand) || operand.dtype == logits || operand.dtype == DType::kFloat32;
  };
  const bool types = sparse || target == logits || target == DType::kUInt8 || target == DType::kInt64 ||
                     (size_of(logits) == 2 && target == DType::kFloat32);
  plan.typed = plan.output == Output::kLossSumAndGrad && types && of.options.loss == Loss::kBce &&
               of.compute_double == (logits == DType::kFloat64) && weight(of.weight) && weight(of.pos_weight) &&
               !(logits == DType::kFloat64 && plan.terms != Terms::kPlain);
  if (plan.terms == Terms::kPlain && !plan.typed) plan.terms = Terms::kOptions;
  return plan;
}
inline int64_t tile_grid(const TileLaunch& launch) { return launch.row_blocks * launch.column_blocks; }

// The second kernel's: one block for the losses, one for every so many columns.
constexpr int kFinishColumns = 32;
inline int64_t finish_tile_grid(const TileLaunch& launch) {
  const bool columns = launch.bias_sum != nullptr;
  return 1 + (columns ? (launch.columns + kFinishColumns - 1) / kFinishColumns : 0);
}

void launch_tile(const TileLaunch& launch, const TilePlan& plan, CUstream_st* stream);
void launch_finish_tile(const TileLaunch& launch, CUstream_st* stream);

}  // namespace fused_logistic
