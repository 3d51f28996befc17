// The CUDA kernels of a tile of pairs as the launcher sees them.
#pragma once
#include <cuda_runtime_api.h>

#include "../pairs.h"
#include "plan.h"

namespace fused_logistic {

struct PairsLaunch {
  Pairs tile;
  double* partials;  // [kPairSums, chunks]
  double* sums;      // to which the tile's are added
  bool aligned;      // whether vectors can be read and written
};

// Starts both kernels; the caller checks for errors.
void launch_pairs(const PairsLaunch& launch, cudaStream_t stream);

}  // namespace fused_logistic
