// Every kernel that the launcher may ask for (plan.h says which). Torch-free: `nvcc -ptx -fmad=false kernels.cu`.
#include "kernels.cuh"

namespace fused_logistic {

#define FL_PLAIN(Z, Y)                                                                \
  template __global__ void plain_kernel<Output::kLossSum, Z, Y>(const Launch);        \
  template __global__ void plain_kernel<Output::kLossSumAndGrad, Z, Y>(const Launch); \
  template __global__ void plain_kernel<Output::kLoss, Z, Y>(const Launch);           \
  template __global__ void plain_kernel<Output::kGradLogits, Z, Y>(const Launch);
#define FL_FLOATING(Z) \
  FL_PLAIN(Z, Z)       \
  FL_PLAIN(Z, uint8_t) \
  FL_PLAIN(Z, int64_t) \
  template __global__ void scale_kernel<Z>(Z*, int64_t, const void*, DType);

FL_FLOATING(double)
FL_FLOATING(float)
FL_FLOATING(Half)
FL_FLOATING(BFloat16)
FL_PLAIN(Half, float)
FL_PLAIN(BFloat16, float)

#define FL_GENERAL(C)                                                       \
  template __global__ void general_kernel<Output::kCount, C>(const Launch); \
  FL_GENERAL_FORM(general_kernel, C)                                        \
  FL_GENERAL_FORM(focal_kernel, C)

#define FL_GENERAL_FORM(kernel, C)                                           \
  template __global__ void kernel<Output::kLossSum, C>(const Launch);        \
  template __global__ void kernel<Output::kLossSumAndGrad, C>(const Launch); \
  template __global__ void kernel<Output::kLoss, C>(const Launch);           \
  template __global__ void kernel<Output::kGradLogits, C>(const Launch);     \
  template __global__ void kernel<Output::kGradTarget, C>(const Launch);     \
  template __global__ void kernel<Output::kGradWeight, C>(const Launch);     \
  template __global__ void kernel<Output::kGradPosWeight, C>(const Launch);

FL_GENERAL(float)
FL_GENERAL(double)

}  // namespace fused_logistic
