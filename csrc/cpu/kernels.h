// The CPU kernels as the rest of the library sees them: three functions per instruction set, chosen at run time.
#pragma once
#include "../problem.h"

namespace fused_logistic {

// Chunks [first, last) of the problem: writes the elementwise output, and the sum of each chunk to partials[chunk]
// where the output has one (else partials is not touched).
using ChunkKernel = void(const Problem& problem, int64_t first, int64_t last, Output output, double* partials);

ChunkKernel baseline_kernel, avx2_kernel, avx512_kernel;  // the last two on x86-64 only

// A layer with one label: the logit of row i is input[i] . linear_weight + bias. Rows are read once: what is derived
// from a few of them is derived while they are in a near cache.
struct LinearProblem {
  Problem loss;  // the loss of the rows' logits; its own logits are not read
  const void* input = nullptr;
  DType input_dtype = DType::kFloat32;
  int64_t features = 0, row_stride = 0;  // in elements
  // In the type of the dot products, fp64 for fp64 input and else fp32; padded with zeros to a multiple of kDotLanes.
  const void* linear_weight = nullptr;
  double bias = 0;
  // Rows are divided into parts, by their number and that of the features alone. Each part has its own sums, in fp64.
  int64_t rows_per_part = 0;
  double* loss_and_grad_bias = nullptr;  // [parts, 2]
  double* grad_weight = nullptr;         // [parts, features], or null where it is not asked for
  void* grad_input = nullptr;            // [rows, features] in the type of the input, or null
};
constexpr int64_t kDotLanes = 32;  // a dot product is that many sums, folded in halves
constexpr int64_t padded(int64_t features) { return (features + kDotLanes - 1) / kDotLanes * kDotLanes; }

// How many rows are taken at a time: few enough to be read a second time from the cache.
constexpr int64_t kMaxBlockRows = 256;
constexpr int64_t block_rows(int64_t features, int64_t element_bytes) {
  const int64_t bytes = features * element_bytes < 1 ? 1 : features * element_bytes, rows = (int64_t(32) << 10) / bytes;
  return rows > kMaxBlockRows ? kMaxBlockRows : rows >= 4 ? rows : bytes <= (64 << 10) ? 4 : 1;
}

// Computes parts [first, last); the loss is kBce. Output: kLossSum or kLossSumAndGrad; kLoss, into loss.out;
// kGradLogits, the gradients of the losses times grad_output. scratch: padded(features) values of the dot products'
// type, 64-byte aligned.
using LinearKernel = void(const LinearProblem& problem, int64_t first, int64_t last, Output output, void* scratch);
LinearKernel baseline_linear_kernel, avx2_linear_kernel, avx512_linear_kernel;

struct Pairs;
// Chunks [first, last) of a tile of pairs (pairs.h): writes the gradients that are asked for, and the sums of each chunk to
// partials[sum * chunks + chunk].
using PairsKernel = void(const Pairs& tile, int64_t first, int64_t last, double* partials);
PairsKernel baseline_pairs_kernel, avx2_pairs_kernel, avx512_pairs_kernel;

// The sum of partial[0 .. count) in the order that problem.h fixes; overwrites partial.
double ordered_sum(double* partial, int64_t count);

struct Isa {
  const char* name;
  ChunkKernel* kernel;
  bool (*supported)();
  LinearKernel* linear;
  PairsKernel* pairs;
};
constexpr int kMaxIsas = 3;
FL_API extern const Isa isas[kMaxIsas];  // fastest first; a null kernel: not built
FL_API const Isa& isa();                 // the one in use: FUSED_LOGISTIC_ISA, else the fastest that this CPU supports
FL_API void set_isa(const char* name);   // throws std::invalid_argument for an unknown or unsupported name

}  // namespace fused_logistic
