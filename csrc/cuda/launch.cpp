// The CUDA entry points of the losses: device guard, current stream, memory from torch's allocator. Nothing waits for the
// device and nothing is read back, so that every op can be captured into a CUDA graph.

#include "../ops.h"
#include "kernels.h"
#include "stream.h"

namespace fused_logistic {
namespace {

class Cuda {
 public:
  explicit Cuda(const Tensor& logits) : device_(logits.device()), guard_(device_.index()) {}

  Tensor empty(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype) const {
    return empty_strided(sizes, strides, dtype, device_);
  }
  // The kernel looks: reading them here would wait for the device.
  bool is_made(const OptionalTensor&, const Tensor&) const { return false; }

  // Launches what the plan says.
  void run(const Problem& problem, Output output, Mean mean, const Tensor* result, const Operand* made_for = {}) const {
    const Plan p = plan(problem, output);
    Launch launch = {};
    launch.problem = problem;
    launch.layouts = layouts_of(problem);
    launch.problem.scale = 1 / mean.value;
    launch.divisor = mean.value;
    launch.count = mean.count;
    launch.is_made = made_for != nullptr;
    if (launch.is_made) launch.made_for = *made_for;
    if (result != nullptr) {
      launch.result = result->mutable_data_ptr();
      launch.result_dtype = dtype_of(result->scalar_type());
    }
    std::optional<Tensor> partials;  // freed in stream order
    if (p.partials > 0) {
      partials = empty({p.partials}, {1}, ScalarType::Double);
      launch.partials = static_cast<double*>(partials->mutable_data_ptr());
    }
    const cudaStream_t stream = current_stream(device_);
    if (p.grid > 0) {
      launch_elements(launch, output, p, stream);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (p.finish) {
      launch_finish(launch, stream);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }

 private:
  const torch::stable::Device device_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) {
  using Cuda = fused_logistic::Ops<fused_logistic::Cuda>;
  m.impl("bce", TORCH_BOX(&Cuda::bce));
  m.impl("bce_with_grad", TORCH_BOX(&Cuda::bce_with_grad));
  m.impl("bce_with_grad_for", TORCH_BOX(&Cuda::bce_with_grad_for));
  m.impl("bce_backward", TORCH_BOX(&Cuda::bce_backward));
  m.impl("bce_backward_", TORCH_BOX(&Cuda::bce_backward_));
  m.impl("bce_count", TORCH_BOX(&Cuda::bce_count));
}
