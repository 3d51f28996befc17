// Memory for large elementwise results. Fresh pages cost more than computing what is written to them, and a training
// step frees its gradient and asks for the same size again: so the last freed blocks are kept for the next request.
#pragma once
#include <ATen/core/Tensor.h>

namespace fused_logistic {

// As at::empty_like(like, dtype) on the CPU, large results from the kept blocks.
at::Tensor empty_like_cpu(const at::Tensor& like, at::ScalarType dtype);
// As at::empty_strided on the CPU, likewise.
at::Tensor empty_cpu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype);
// Returns the kept blocks to the system; FUSED_LOGISTIC_CACHE=0 keeps none in the first place.
void empty_cache();
size_t cached_bytes();

}  // namespace fused_logistic
