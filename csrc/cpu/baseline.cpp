// The kernels for every CPU of the architecture (x86-64: SSE2; aarch64: NEON with its fma).
#include "chunk_kernel.h"
#include "linear_kernel.h"
#include "pairs_kernel.h"

namespace fused_logistic {
void baseline_kernel(const Problem& problem, int64_t first, int64_t last, Output output, double* partials) {
  run(problem, first, last, output, partials);
}
void baseline_linear_kernel(const LinearProblem& problem, int64_t first, int64_t last, Output output, void* scratch) {
  run_linear(problem, first, last, output, scratch);
}
void baseline_pairs_kernel(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  run_pairs(tile, first, last, partials);
}
}  // namespace fused_logistic
