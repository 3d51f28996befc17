// What the CPU entry points of the losses and of the layer share.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "../tensors.h"
#include "float_mode.h"

namespace fused_logistic {

// Runs the kernel over all chunks, on torch's threads; returns the sum for outputs that have one. The order of the sums
// is the kernels', not the threads'. Whatever computes beside it does so in_float_mode too, on every thread.
double run(const Problem& problem, Output output);

// Uninitialised, large results from the kept blocks of memory.h.
Tensor empty_cpu(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype);

// Calls f with the address of a floating point tensor's first element.
template <class F>
void with_data(const Tensor& tensor, F f) {
  void* const data = const_cast<void*>(data_of(tensor, "with_data"));
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return f(static_cast<double*>(data));
    case ScalarType::Float:
      return f(static_cast<float*>(data));
    case ScalarType::Half:
      return f(static_cast<torch::headeronly::Half*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<torch::headeronly::BFloat16*>(data));
    default:
      refuse("with_data", "expected a floating point dtype");
  }
}

// As torch converts: to 16 bits by way of fp32.
template <class T>
T rounded_to(double value) {
  return T(std::conditional_t<sizeof(T) == 2, float, double>(value));
}

// The value of a tensor of one element of a floating point dtype, and such a tensor.
double scalar_of(const Tensor& tensor);
Tensor scalar_tensor(double value, ScalarType dtype);
void write_scalar(double value, const Tensor& result);

}  // namespace fused_logistic
