// The kernels for CPUs with AVX2 and FMA. The target pragma comes first: all that is included below is built for them.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FL_AVX2
#include "chunk_kernel.h"
#include "linear_kernel.h"
#include "pairs_kernel.h"

namespace fused_logistic {
void avx2_kernel(const Problem& problem, int64_t first, int64_t last, Output output, double* partials) {
  run(problem, first, last, output, partials);
}
void avx2_linear_kernel(const LinearProblem& problem, int64_t first, int64_t last, Output output, void* scratch) {
  run_linear(problem, first, last, output, scratch);
}
void avx2_pairs_kernel(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  run_pairs(tile, first, last, partials);
}
}  // namespace fused_logistic
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
