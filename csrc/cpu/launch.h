// What the CPU entry points of the losses and of the layer share.
#pragma once
#include "../tensors.h"

namespace fused_logistic {

// Runs the kernel over all chunks, on torch's threads; returns the sum for outputs that have one. The order of the sums
// is the kernels', not the threads'.
double run(const Problem& problem, Output output);

// Uninitialised, large results from the kept blocks of memory.h.
Tensor empty_cpu(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype);

// The value of a tensor of one element of a floating point dtype, and such a tensor.
double scalar_of(const Tensor& tensor);
Tensor scalar_tensor(double value, ScalarType dtype);
void write_scalar(double value, const Tensor& result);

}  // namespace fused_logistic
