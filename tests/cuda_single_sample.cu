// A few of the kernels for one label: see cuda_sample.cu.
#include "../csrc/cuda/single.cuh"

namespace fused_logistic {

template __global__ void single_kernel<float, float, 1>(const SingleLaunch);
template __global__ void single_kernel<BFloat16, float, 2>(const SingleLaunch);

}  // namespace fused_logistic
