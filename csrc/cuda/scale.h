// The CUDA kernel that scales a gradient as the launcher sees it.
#pragma once
#include <cuda_runtime_api.h>

#include "plan.h"

namespace fused_logistic {

struct ScaleLaunch {
  void* gradient;
  DType dtype;
  int64_t numel;
  const void* factor;  // one number on the device
  DType factor_dtype;
  bool aligned;  // whether vectors can be read and written
};

constexpr int kScaleThreads = 256;
inline int64_t scale_grid(const ScaleLaunch& launch) {  // a thread takes several vectors of a large gradient
  const int64_t per_block = kScaleThreads * kPerThread, blocks = (launch.numel + per_block - 1) / per_block;
  return blocks < 4096 ? blocks : 4096;
}

// Starts the kernel; the caller checks for errors.
void launch_scale(const ScaleLaunch& launch, cudaStream_t stream);

}  // namespace fused_logistic
