// The CUDA entry point of a layer with one output. As in launch.cpp, nothing waits for the device.
#include "single.h"

#include <algorithm>

#include "../single.h"
#include "stream.h"

namespace fused_logistic {
namespace {

class CudaLayer {
 public:
  explicit CudaLayer(const Tensor& input) : device_(input.device()), guard_(device_.index()) {}

  Tensor empty(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype) const {
    return empty_strided(sizes, strides, dtype, device_);
  }

  void run(LinearProblem& problem, Output output, const Tensor& linear_weight, const OptionalTensor& linear_bias,
           Mean mean, const SingleResults& results) const {
    const Tensor weight = torch::stable::contiguous(linear_weight);
    problem.loss.scale = 1 / mean.value;
    problem.linear_weight = weight.const_data_ptr();
    SingleLaunch launch = {};
    const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    const int64_t half =
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 2 - attribute(cudaDevAttrReservedSharedMemoryPerBlock);
    launch.plan = plan_single(problem, results.grad_weight != nullptr, std::min(half, most), most);
    const int64_t parts = launch.plan.parts;
    const Tensor workspace = empty({launch.plan.workspace}, {1}, ScalarType::Double);  // freed in stream order
    launch.scratch = workspace.mutable_data_ptr();
    problem.loss_and_grad_bias = static_cast<double*>(launch.scratch) + launch.plan.scratch;
    if (results.grad_weight != nullptr) problem.grad_weight = problem.loss_and_grad_bias + 2 * parts;
    launch.problem = problem;
    launch.output = output;
    launch.linear_bias = linear_bias.has_value() ? linear_bias->const_data_ptr() : nullptr;
    launch.count = mean.count;
    launch.divisor = mean.value;
    const auto data = [](const Tensor* tensor) { return tensor != nullptr ? tensor->mutable_data_ptr() : nullptr; };
    launch.loss = data(results.loss);
    launch.grad_weight = data(results.grad_weight);
    launch.grad_bias = data(results.grad_bias);
    if (results.loss != nullptr) launch.loss_dtype = dtype_of(results.loss->scalar_type());
    const cudaStream_t stream = current_stream(device_);
    if (parts > 0) {
      launch_single(launch, stream);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (launch.loss == nullptr && launch.grad_weight == nullptr && launch.grad_bias == nullptr) return;
    launch_single_sums(launch, stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  int64_t attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device_.index()));
    return value;
  }

  const torch::stable::Device device_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) {
  m.impl("linear_bce_single", TORCH_BOX(&fused_logistic::linear_bce_single<fused_logistic::CudaLayer>));
}
