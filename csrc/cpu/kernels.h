// The CPU kernels as the rest of the library sees them: three functions per instruction set, chosen at run time.
#pragma once
#include "../linear.h"

namespace fused_logistic {

// Chunks [first, last) of the problem: writes the elementwise output, and the sum of each chunk to partials[chunk]
// where the output has one (else partials is not touched).
using ChunkKernel = void(const Problem& problem, int64_t first, int64_t last, Output output, double* partials);

ChunkKernel baseline_kernel, avx2_kernel, avx512_kernel;  // the last two on x86-64 only

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
