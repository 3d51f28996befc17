// The body of a PairsKernel. Each instruction set includes this file once (baseline.cpp, avx2.cpp, avx512.cpp).
#pragma once
#include "../pairs.h"
#include "kernels.h"
#include "source.h"
#include "sums.h"

namespace fused_logistic {
namespace {

// A row of kLanes pairs, in the type of the arithmetic, and what its lanes add up.
template <class C>
struct PairRow {
  alignas(64) C x[kLanes], y[kLanes], grad[kLanes];
  alignas(64) C lanes[4][kLanes];  // q, linear, grad_scale, grad_bias
  C scale, bias, factor;
};

template <bool kGrad, class V, class C>
FL_FN void pair_step(PairRow<C>& row, int64_t i) {
  V lanes[4];
  for (int k = 0; k < 4; ++k) lanes[k] = load_as<V>(row.lanes[k] + i);
  PairSums<V> sums = {{lanes[0], lanes[1]}, lanes[2], lanes[3]};
  const V x = load_as<V>(row.x + i), z = fma(splat<V>(row.scale), x, splat<V>(row.bias));
  const V grad = add_pair<kGrad>(x, z, load_as<V>(row.y + i), sums);
  store(row.lanes[0] + i, sums.losses.q);
  store(row.lanes[1] + i, sums.losses.linear);
  if constexpr (kGrad) {
    store(row.lanes[2] + i, sums.grad_scale);
    store(row.lanes[3] + i, sums.grad_bias);
    store(row.grad + i, grad * splat<V>(row.factor));
  }
}

template <bool kGrad, class C>
void add_pairs(PairRow<C>& row, int64_t count) {
  using V = typename Simd<C>::ValueOfFew;
  constexpr int64_t w = width<V>;
  int64_t i = 0;
  for (; i + w <= count; i += w) pair_step<kGrad, V>(row, i);
  if (i == count) return;
  // The rest, padded to a whole value: what the lanes behind had is put back.
  C before[4][w];
  for (int k = 0; k < 4; ++k) memcpy(before[k], row.lanes[k] + i, sizeof(before[k]));
  pair_step<kGrad, V>(row, i);
  const int64_t n = count - i;
  for (int k = 0; k < 4; ++k) memcpy(row.lanes[k] + count, before[k] + n, (w - n) * sizeof(C));
}

// The sums of a chunk, whose similarities are x, and its gradients, if they are to be written.
template <bool kGrad, class C, class T>
void run_pairs_of_chunk(const Pairs& tile, const T* x, int64_t begin, int64_t end, bool writes, PairRow<C>& row,
                        double (&sums)[kPairSums]) {
  const int64_t filled = end - begin < kLanes ? end - begin : kLanes;
  row.scale = C(*static_cast<const T*>(tile.scale));
  row.bias = tile.bias == nullptr ? C(0) : C(*static_cast<const T*>(tile.bias));
  row.factor = C(tile.factor);
  memset(row.lanes, 0, sizeof(row.lanes));
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t count = end - i < kLanes ? end - i : kLanes;
    convert(x, i - begin, count, row.x);
    memset(row.y, 0, sizeof(row.y));
    uint32_t p = positive_from(tile.positives, uint32_t(i));
    for (; p < i + count; p = positive_after(tile.positives, p)) row.y[p - i] = 1;
    add_pairs<kGrad>(row, count);
    if (kGrad && writes) write(row.grad, count, tile.grad_dtype, tile.grad, i);
  }
  sums[kLossOfPairs] = sum_of_groups(row.lanes[0], row.lanes[1], filled);
  if constexpr (!kGrad) return;
  alignas(64) double lanes[kLanes + 1];
  for (int k = 0; k < 2; ++k) {
    for (int64_t i = 0; i < filled; ++i) lanes[i] = double(row.lanes[2 + k][i]);
    sums[kGradScale + k] = fold(lanes, filled);
  }
}

template <bool kGrad, class T>
void run_pairs_of(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  alignas(64) T saved[kChunk];
  PairRow<T> row = {};
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < tile.numel ? begin + kChunk : tile.numel;
    const T* x = static_cast<const T*>(tile.similarities) + begin;
    if (tile.grad == tile.similarities) {
      memcpy(saved, x, (end - begin) * sizeof(T));
      x = saved;
    }
    double sums[kPairSums] = {};
    run_pairs_of_chunk<kGrad>(tile, x, begin, end, true, row, sums);
    if constexpr (sizeof(T) < sizeof(double)) {
      const double all = sums[0] + sums[1] + sums[2];
      if (!(all - all == 0)) {
        PairRow<double> in_double = {};
        run_pairs_of_chunk<kGrad>(tile, x, begin, end, false, in_double, sums);
      }
    }
    for (int k = 0; k < kPairSums; ++k) partials[k * chunks(tile.numel) + chunk] = sums[k];
  }
}

void run_pairs(const Pairs& tile, int64_t first, int64_t last, double* partials) {
  const auto run = [&](auto kernel) { kernel(tile, first, last, partials); };
  if (tile.dtype == DType::kFloat64) {
    run(tile.grad == nullptr ? run_pairs_of<false, double> : run_pairs_of<true, double>);
  } else {
    run(tile.grad == nullptr ? run_pairs_of<false, float> : run_pairs_of<true, float>);
  }
}

}  // namespace
}  // namespace fused_logistic
