// A few kernels of each kind: what the tests compile for the architectures on which they do not run every kernel.
#include "../csrc/cuda/kernels.cuh"

namespace fused_logistic {

template __global__ void plain_kernel<Output::kLossSumAndGrad, float, float>(const Launch);
template __global__ void plain_kernel<Output::kLossSumAndGrad, double, uint8_t>(const Launch);
template __global__ void plain_kernel<Output::kLossSumAndGrad, Half, Half>(const Launch);
template __global__ void plain_kernel<Output::kLossSumAndGrad, BFloat16, BFloat16>(const Launch);
template __global__ void plain_kernel<Output::kGradLogits, BFloat16, float>(const Launch);
template __global__ void general_kernel<Output::kLossSumAndGrad, float>(const Launch);
template __global__ void general_kernel<Output::kGradTarget, double>(const Launch);
template __global__ void focal_kernel<Output::kLossSumAndGrad, float>(const Launch);
template __global__ void scale_kernel<BFloat16>(BFloat16*, int64_t, const void*, DType);

}  // namespace fused_logistic
