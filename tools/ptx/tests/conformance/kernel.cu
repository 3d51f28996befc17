// One thread computes every operation of one input and stores the results, one column for each operation.
#include "operations.h"

struct Record {
  uint64_t* next;
  int64_t stride;
  __device__ __forceinline__ void operator()(const char*, uint64_t result) {
    *next = result;
    next += stride;
  }
};

__global__ void operations(int64_t n, const uint64_t* a, const uint64_t* b, const uint64_t* c, const float* f,
                           const double* d, uint64_t* integers, uint64_t* floats, uint64_t* doubles, uint64_t* halves) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Record to_integers{integers + i, n}, to_floats{floats + i, n}, to_doubles{doubles + i, n}, to_halves{halves + i, n};
  integer_operations(a[i], b[i], c[i], to_integers);
  float_operations(f[i], f[n + i], f[2 * n + i], to_floats);
  double_operations(d[i], d[n + i], d[2 * n + i], int64_t(a[i]), to_doubles);
  half_operations(a[i], b[i], c[i], to_halves);
}
