// The kernel of pairs for the CPUs of avx2.cpp, by the same means.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FL_AVX2
#include "pairs_kernel.h"

namespace fused_logistic {
void avx2_pairs_kernel(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  run_pairs(tile, first, last, partials);
}
}  // namespace fused_logistic
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
