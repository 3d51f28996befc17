// The kernels for every CPU of the architecture (x86-64: SSE2; aarch64: NEON with its fma).
#include "chunk_kernel.h"

namespace fused_logistic {
void baseline_kernel(const Problem& problem, int64_t first, int64_t last, Output output, double* partials) {
  run(problem, first, last, output, partials);
}
}  // namespace fused_logistic
