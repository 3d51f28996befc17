// A few kernels of each kind: what the tests compile for the architectures on which they do not run every kernel.
#include "../csrc/cuda/kernels.cuh"

namespace fused_logistic {

template __global__ void typed_kernel<Output::kLossSumAndGrad, float, float>(const Launch);
template __global__ void typed_kernel<Output::kLossSumAndGrad, double, uint8_t>(const Launch);
template __global__ void typed_kernel<Output::kLossSumAndGrad, Half, Half>(const Launch);
template __global__ void typed_kernel<Output::kLossSumAndGrad, BFloat16, BFloat16>(const Launch);
template __global__ void typed_kernel<Output::kGradLogits, BFloat16, float>(const Launch);
template __global__ void typed_kernel<Output::kLoss, float, float>(const Launch);
template __global__ void general_kernel<Output::kLossSumAndGrad, Bce, Terms::kAll, float>(const Launch);
template __global__ void general_kernel<Output::kGradTarget, Bce, Terms::kAll, double>(const Launch);
template __global__ void general_kernel<Output::kLossSumAndGrad, FocalLoss, Terms::kAll, float>(const Launch);
template __global__ void general_kernel<Output::kLossSumAndGrad, Bce, Terms::kOptions, float>(const Launch);

}  // namespace fused_logistic
