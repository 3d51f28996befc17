// The CUDA kernels of a tile of pairs: a block takes a chunk, a thread neighbouring lanes of it, as in kernels.cuh, and the
// bits are those of the CPU kernel, sums included.
#pragma once
#include "access.cuh"
#include "pairs.h"
#include "sums.cuh"

namespace fused_logistic {

// What a block adds up, right in thread 0.
template <class C>
FL_DEVICE void fold_pairs(const PairSums<C> (&lanes)[kPerThread], double (&sums)[kPairSums]) {
  double losses[1] = {
      double(loss(joined(joined(lanes[0].losses, lanes[1].losses), joined(lanes[2].losses, lanes[3].losses))))};
  double grad_scale[kPerThread], grad_bias[kPerThread];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    grad_scale[k] = double(lanes[k].grad_scale);
    grad_bias[k] = double(lanes[k].grad_bias);
  }
  sums[kLossOfPairs] = fold<kThreads>(losses);
  sums[kGradScale] = fold<kThreads>(grad_scale);
  sums[kGradBias] = fold<kThreads>(grad_bias);
}

// Pairs from i on, of which the first `count` exist; kWhole: all. Arithmetic in C, similarities of type T. positive: the
// first positive from i on.
template <bool kGrad, bool kWhole, class C, class T>
FL_DEVICE void add_pack(const T (&x)[kPerThread], int count, uint32_t i, const Diagonal& diagonal, uint32_t& positive,
                        C scale, C bias, PairSums<C> (&lanes)[kPerThread], C (&grad)[kPerThread]) {
  if (positive < i) positive = positive_from(diagonal, i);
  if (kWhole && positive - i >= uint32_t(kPerThread)) {  // as nearly always: the target is known
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      grad[k] = add_pair<kGrad>(C(x[k]), fma(scale, C(x[k]), bias), C(0), lanes[k]);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const bool is_positive = i + k == positive;
    if (is_positive) positive = positive_after(diagonal, positive);
    // what does not exist has the logit -infinity, which adds nothing
    const C z = kWhole || k < count ? fma(scale, C(x[k]), bias) : -C(__builtin_inff());
    grad[k] = add_pair<kGrad>(C(x[k]), z, C(is_positive ? 1 : 0), lanes[k]);
  }
}

// G: of the gradient in memory. Where it is as wide as the similarities it may take their place: it is written when nobody
// reads them any more.
template <bool kGrad, class C, class G>
__global__ void __launch_bounds__(kThreads, sizeof(G) == 2 ? 3 : 1) pairs_kernel(const PairsLaunch launch) {
  constexpr int N = kPerThread, kRows = int(kChunk / kLanes);
  constexpr bool kHeld = kGrad && sizeof(G) == sizeof(C);
  constexpr int kUnrolled = kHeld ? kRows : 2;  // rows whose loads are in flight at a time
  const Pairs& tile = launch.tile;
  const C* const similarities = static_cast<const C*>(tile.similarities);
  G* const out = static_cast<G*>(tile.grad);
  const C scale = *static_cast<const C*>(tile.scale);
  const C bias = tile.bias != nullptr ? *static_cast<const C*>(tile.bias) : C(0);
  const C factor = C(tile.factor);
  const uint32_t numel = uint32_t(tile.numel), chunk = blockIdx.x * uint32_t(kChunk), begin = chunk + threadIdx.x * N;
  const auto present = [&](uint32_t i) { return i >= numel ? 0 : numel - i < N ? int(numel - i) : N; };
  const auto write = [&](auto whole, uint32_t i, const C(&grad)[N]) {
    C values[N];
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = grad[k] * factor;
    if constexpr (decltype(whole)::value) {
      store_pack(out + i, values);
    } else {
      store_some(out + i, present(i), values);
    }
  };
  PairSums<C> lanes[N] = {};
  C held[kHeld ? kRows : 1][N];
  uint32_t positive = positive_from(tile.positives, begin);
  const auto add = [&](auto whole) {
#pragma unroll 1
    for (int first = 0; first < kRows; first += kUnrolled) {
      C x[kUnrolled][N];
#pragma unroll
      for (int row = 0; row < kUnrolled; ++row) {
        const uint32_t i = begin + (first + row) * uint32_t(kLanes);
        if constexpr (decltype(whole)::value) {
          load_pack(similarities + i, x[row]);
        } else {
          load_some(similarities + i, present(i), x[row]);
        }
      }
#pragma unroll
      for (int row = 0; row < kUnrolled; ++row) {
        const uint32_t i = begin + (first + row) * uint32_t(kLanes);
        C(&grad)[N] = held[kHeld ? row : 0];
        add_pack<kGrad, decltype(whole)::value>(x[row], present(i), i, tile.positives, positive, scale, bias, lanes,
                                                grad);
        if constexpr (kGrad && !kHeld) write(whole, i, grad);
      }
    }
  };
  const auto write_held = [&](auto whole) {
#pragma unroll
    for (int row = 0; row < (kHeld ? kRows : 0); ++row) write(whole, begin + row * uint32_t(kLanes), held[row]);
  };
  const bool whole = launch.aligned && numel - chunk >= uint32_t(kChunk);
  whole ? add(std::true_type{}) : add(std::false_type{});
  double sums[kPairSums];
  fold_pairs(lanes, sums);
  if constexpr (sizeof(C) < sizeof(double)) {
    const double all = from_first_thread(sums[0] + sums[1] + sums[2]);
    if (!(all - all == 0)) {
      PairSums<double> in_double[N] = {};
      positive = positive_from(tile.positives, begin);
#pragma unroll 1
      for (uint32_t i = begin; i < numel && i < begin + kChunk; i += uint32_t(kLanes)) {
        C x[N];
        double unused[N];
        load_some(similarities + i, present(i), x);
        add_pack<kGrad, false>(x, present(i), i, tile.positives, positive, double(scale), double(bias), in_double,
                               unused);
      }
      fold_pairs(in_double, sums);
    }
  }
  if constexpr (kHeld) whole ? write_held(std::true_type{}) : write_held(std::false_type{});
  if (threadIdx.x == 0) {
#pragma unroll
    for (int k = 0; k < kPairSums; ++k) launch.partials[k * int64_t(gridDim.x) + blockIdx.x] = sums[k];
  }
}

// A block for each sum.
static __global__ void __launch_bounds__(kLanes) finish_pairs_kernel(const PairsLaunch launch) {
  const int64_t count = chunks(launch.tile.numel);
  const double sum = sum_of_chunks(launch.partials + blockIdx.x * count, count);
  if (threadIdx.x == 0) launch.sums[blockIdx.x] += sum;
}

}  // namespace fused_logistic
