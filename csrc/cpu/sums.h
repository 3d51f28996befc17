// How a chunk's lanes are added up, in the order that problem.h fixes.
#pragma once
#include "storage.h"

namespace fused_logistic {
namespace {

// The sum of values[0 .. count), neighbours first; overwrites them and, if count is odd, the one behind.
FL_CALLED double fold(double* values, int64_t count) {
  using V = DoubleVector;
  constexpr int64_t w = width<V>;
  while (count > 1) {
    if (count % 2 != 0) values[count++] = 0;
    count /= 2;
    int64_t i = 0;
    for (; i + w <= count; i += w) {
      const V a = load(values + 2 * i), b = load(values + 2 * i + w);
      store(values + i, every_second<0>(a, b) + every_second<1>(a, b));
    }
    for (; i < count; ++i) values[i] = values[2 * i] + values[2 * i + 1];
  }
  return values[0];
}

// What a chunk's groups come to, added. Lanes from `count` on are zero.
template <class C>
FL_CALLED double sum_of_groups(const C* q, const C* linear, int64_t count) {
  using V = typename Simd<C>::Vector;
  constexpr int64_t w = width<V>;
  alignas(64) C joined_q[kLanes], joined_linear[kLanes];
  alignas(64) double sums[kLanes / kJoined];
  C *to_q = joined_q, *to_linear = joined_linear;
  count = (count + kJoined * w - 1) / (kJoined * w) * (kJoined * w);
  for (int64_t joins = kJoined; joins > 1; joins /= 2) {
    count /= 2;
    for (int64_t i = 0; i < count; i += w) {
      const V q0 = load(q + 2 * i), q1 = load(q + 2 * i + w), linear0 = load(linear + 2 * i),
              linear1 = load(linear + 2 * i + w);
      const LossGroup<V> even = {every_second<0>(q0, q1), every_second<0>(linear0, linear1)};
      const LossGroup<V> group = joined(even, {every_second<1>(q0, q1), every_second<1>(linear0, linear1)});
      store(to_q + i, group.q);
      store(to_linear + i, group.linear);
    }
    q = to_q, linear = to_linear;
    to_q += count, to_linear += count;
  }
  for (int64_t i = 0; i < count; i += w) {
    C values[w];
    store(values, loss(LossGroup<V>{load(q + i), load(linear + i)}));
    for (int64_t k = 0; k < w; ++k) sums[i + k] = double(values[k]);
  }
  return fold(sums, count);
}

}  // namespace
}  // namespace fused_logistic
