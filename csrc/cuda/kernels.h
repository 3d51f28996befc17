// The CUDA kernels as the launcher sees them. No device code and no torch: launch.cpp, with torch's headers, is compiled
// once by the host compiler, and only kernels.cu, without them, for every architecture.
#pragma once
#include <cuda_runtime_api.h>

#include "plan.h"

namespace fused_logistic {

// What every kernel takes.
struct Launch {
  Problem problem;
  Layouts layouts;
  const double* count;  // on the device: the number of elements that a mean is taken over; null: divisor
  double divisor;       // result = sum / divisor
  double* partials;     // the sum of each chunk; not used if there is only one chunk
  void* result;
  DType result_dtype;
  // kGradLogits: whether problem.out already holds the gradient for the grad_output made_for, one number on the device; 1
  // if it is absent. Where the problem's own is the same number, nothing is touched; else the gradient is computed again,
  // over it. So it is for 0, of which there are two.
  bool is_made;
  Operand made_for;
};

// Each starts one kernel; the caller checks for errors. These are also what instantiates the kernels' templates.
void launch_elements(const Launch& launch, Output output, const Plan& plan, cudaStream_t stream);
void launch_finish(const Launch& launch, cudaStream_t stream);

}  // namespace fused_logistic
