// Which kernel computes what: see kernels.cu.
#include "single.cuh"

namespace fused_logistic {
namespace {

using Kernel = void (*)(const SingleLaunch);

template <class T, class C>
Kernel kernel(int vectors) {
  if (vectors == 0) return single_kernel<T, C, 0>;
  if constexpr ((sizeof(T) == sizeof(double)) == (sizeof(C) == sizeof(double))) {
    if (vectors == 1) return single_kernel<T, C, 1>;
  }
  return single_kernel<T, C, 2>;
}
template <class T>
Kernel kernel(const SingleLaunch& launch) {
  // fp64 targets ask for fp64 losses of fp32 logits
  if (launch.problem.loss.compute_double) return kernel<T, double>(launch.plan.vectors);
  if constexpr (sizeof(T) <= sizeof(float)) return kernel<T, float>(launch.plan.vectors);
  return nullptr;
}
Kernel kernel(const SingleLaunch& launch) {
  switch (launch.problem.input_dtype) {
    case DType::kFloat64:
      return kernel<double>(launch);
    case DType::kFloat16:
      return kernel<Half>(launch);
    case DType::kBFloat16:
      return kernel<BFloat16>(launch);
    default:
      return kernel<float>(launch);
  }
}

}  // namespace

void launch_single(const SingleLaunch& launch, cudaStream_t stream) {
  const SinglePlan& plan = launch.plan;
  const Kernel chosen = kernel(launch);
  if (plan.shared_bytes > 0) {  // else an error, which the launch would meet too
    cudaFuncSetAttribute(chosen, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
    // else there may be room for one block alone
    cudaFuncSetAttribute(chosen, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  chosen<<<unsigned(plan.parts), unsigned(kSingleThreads), size_t(plan.shared_bytes), stream>>>(launch);
}

void launch_single_sums(const SingleLaunch& launch, cudaStream_t stream) {
  const int64_t threads = 2 + (launch.grad_weight != nullptr ? launch.problem.features : 0);
  single_sums_kernel<<<unsigned((threads + kSumsThreads - 1) / kSumsThreads), unsigned(kSumsThreads), 0, stream>>>(
      launch);
}

}  // namespace fused_logistic
