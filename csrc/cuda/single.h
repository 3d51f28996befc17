// The kernels of a layer with one output as the launcher sees them: see kernels.h.
#pragma once
#include <cuda_runtime_api.h>

#include "single_plan.h"

namespace fused_logistic {

// Starts one kernel, which needs a plan with parts; the caller checks for errors.
void launch_single(const SingleLaunch& launch, cudaStream_t stream);
// Adds up what the parts come to, and writes what is asked for.
void launch_single_sums(const SingleLaunch& launch, cudaStream_t stream);

}  // namespace fused_logistic
