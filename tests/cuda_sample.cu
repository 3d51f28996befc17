// A few kernels of each kind: what the tests compile for the architectures on which they do not run every kernel.
#include "../csrc/cuda/kernels.cuh"

namespace fused_logistic {

template <class Z>
using Same = Typed<Z, Types<Z>>;
template <class Z>
using Other = Typed<Z, OtherTargets<Z>>;
constexpr Output kOnePass = Output::kLossSumAndGrad;

template __global__ void elements_kernel<kOnePass, Bce, Terms::kPlain, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kPlain, Typed<double, Types<uint8_t>>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kPlain, Same<Half>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kPlain, Same<BFloat16>>(const Launch);
template __global__ void elements_kernel<Output::kGradLogits, Bce, Terms::kPlain, Other<BFloat16>>(const Launch);
template __global__ void elements_kernel<Output::kLoss, Bce, Terms::kPlain, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kOptions, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kOptions, Other<Half>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kOptions, Same<BFloat16>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kAll, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kAll, Same<BFloat16>>(const Launch);
template __global__ void elements_kernel<kOnePass, FocalLossOf<false>, Terms::kAll, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, FocalLossOf<false>, Terms::kAll, Other<BFloat16>>(const Launch);
template __global__ void elements_kernel<kOnePass, FocalLossOf<true>, Terms::kPlain, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, FocalLossOf<true>, Terms::kAll, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, QualityLossOf<true>, Terms::kPlain, Same<float>>(const Launch);
template __global__ void elements_kernel<kOnePass, AsymmetricLossOf<true>, Terms::kPlain, Same<float>>(const Launch);
template __global__ void elements_kernel<Output::kCount, Bce, Terms::kOptions, Counted>(const Launch);
template __global__ void elements_kernel<kOnePass, Bce, Terms::kAll, General<float>>(const Launch);
template __global__ void elements_kernel<Output::kGradTarget, Bce, Terms::kAll, General<double>>(const Launch);

}  // namespace fused_logistic
