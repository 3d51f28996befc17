// How the threads of a block add up, in the order that problem.h fixes.
#pragma once
#include "../device.h"
#include "plan.h"

namespace fused_logistic {

// The sum of what a block's threads have, kCount values each, neighbours first; right in thread 0.
template <int kBlock, int kCount>
FL_DEVICE double fold(double (&values)[kCount]) {
  constexpr int kWarps = kBlock / kWarpSize;
  __shared__ double shared[kWarpSize];
  const int t = int(threadIdx.x);
#pragma unroll
  for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
    for (int k = 0; k < kCount; k += 2 * step) values[k] += values[k + step];
  }
  double sum = values[0];
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) sum += from_later_thread(sum, step);
  __syncthreads();  // the last fold has read what this one overwrites
  if (t % kWarpSize == 0) shared[t / kWarpSize] = sum;
  __syncthreads();
  if (t < kWarpSize) {
    sum = t < kWarps ? shared[t] : 0;
#pragma unroll
    for (int step = 1; step < kWarps; step *= 2) sum += from_later_thread(sum, step);
  }
  return sum;
}

// x of thread 0, to all of a block. A fold lies between two calls, so that none overwrites what another still reads.
FL_DEVICE double from_first_thread(double x) {
  __shared__ double shared;
  if (threadIdx.x == 0) shared = x;
  __syncthreads();
  return shared;
}

// The second stage: one block of kLanes threads sums the chunks' sums in the same order, level by level, in place; right in
// thread 0.
FL_DEVICE double sum_of_chunks(double* partials, int64_t count) {
  double sum = count == 1 ? partials[0] : 0;
  for (; count > 1; count = chunks(count)) {
    for (int64_t begin = 0, chunk = 0; begin < count; begin += kChunk, ++chunk) {
      double lane[1] = {0};
#pragma unroll
      for (int64_t row = 0; row < kChunk; row += kLanes) {
        const int64_t i = begin + row + threadIdx.x;
        if (i < count) lane[0] += partials[i];
      }
      sum = fold<int(kLanes)>(lane);
      if (threadIdx.x == 0) partials[chunk] = sum;
    }
    __syncthreads();
  }
  return sum;
}

}  // namespace fused_logistic
