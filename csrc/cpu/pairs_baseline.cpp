// The kernel of pairs for the CPUs of baseline.cpp, by the same means.
#include "pairs_kernel.h"

namespace fused_logistic {
void baseline_pairs_kernel(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  run_pairs(tile, first, last, partials);
}
}  // namespace fused_logistic
