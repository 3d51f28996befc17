// The CUDA entry point of a tile of pairs: nothing waits for the device, as in launch.cpp.
#include "pairs.h"

#include <torch/csrc/stable/library.h>

#include "../pairs_op.h"
#include "stream.h"

namespace fused_logistic {
namespace {

void pairs_tile_cuda(FL_PAIRS) {
  const torch::stable::Device device = similarities.device();
  const torch::stable::accelerator::DeviceGuard guard(device.index());
  PairsLaunch launch = {};
  launch.tile = pairs_of(FL_GIVEN_PAIRS);
  if (launch.tile.numel == 0) return;
  const Tensor partials = empty_strided({kPairSums * chunks(launch.tile.numel)}, {1}, ScalarType::Double, device);
  launch.partials = static_cast<double*>(partials.mutable_data_ptr());
  launch.sums = static_cast<double*>(sums.mutable_data_ptr());
  launch.aligned =
      is_aligned(launch.tile.similarities, launch.tile.dtype) && is_aligned(launch.tile.grad, launch.tile.grad_dtype);
  const cudaStream_t stream = current_stream(device);
  launch_pairs(launch, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) {
  m.impl("pairs_tile_", TORCH_BOX(&fused_logistic::pairs_tile_cuda));
}
