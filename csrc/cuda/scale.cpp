// The CUDA entry point of what scales a gradient: nothing waits for the device, as in launch.cpp.
#include "scale.h"

#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "stream.h"

namespace fused_logistic {
namespace {

void scale_cuda(Tensor& gradient, const Tensor& factor) {
  require(gradient.is_contiguous() && is_floating(gradient.scalar_type()) && is_floating(factor.scalar_type()) &&
              factor.numel() == 1 && factor.device() == gradient.device(),
          "scale_", "expected a contiguous gradient and one number on its device");
  if (gradient.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(gradient.device().index());
  const DType dtype = dtype_of(gradient.scalar_type());
  void* const data = gradient.mutable_data_ptr();
  const ScaleLaunch launch = {data,
                              dtype,
                              int64_t(gradient.numel()),
                              factor.const_data_ptr(),
                              dtype_of(factor.scalar_type()),
                              is_aligned(data, dtype)};
  const cudaStream_t stream = current_stream(gradient.device());
  launch_scale(launch, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) { m.impl("scale_", TORCH_BOX(&fused_logistic::scale_cuda)); }
