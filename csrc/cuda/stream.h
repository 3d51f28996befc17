// The stream on which an entry point launches.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../tensors.h"

namespace fused_logistic {

// torch's current one on that device.
inline cudaStream_t current_stream(const torch::stable::Device& device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fused_logistic
