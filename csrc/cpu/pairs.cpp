// The CPU entry point of a tile of pairs. What is around it is fused_logistic/pairs.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../pairs_op.h"
#include "float_mode.h"
#include "kernels.h"

namespace fused_logistic {
namespace {

void pairs_tile_cpu(FL_PAIRS) {
  const Pairs tile = pairs_of(FL_GIVEN_PAIRS);
  const int64_t count = chunks(tile.numel);
  std::vector<double> partials(kPairSums * count);
  PairsKernel* const kernel = isa().pairs;
  torch::stable::parallel_for(0, count, /*grain_size=*/2, [&](int64_t first, int64_t last) {
    in_float_mode([&] { kernel(tile, first, last, partials.data()); });
  });
  double* const into = static_cast<double*>(sums.mutable_data_ptr());
  in_float_mode([&] {
    for (int k = 0; k < kPairSums; ++k) into[k] += ordered_sum(partials.data() + k * count, count);
  });
}

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CPU, m) { m.impl("pairs_tile_", TORCH_BOX(&fused_logistic::pairs_tile_cpu)); }
