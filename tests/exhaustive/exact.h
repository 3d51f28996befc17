// What the sweeps measure with: functions with at least 29 more bits than csrc/logistic.h, and errors in ulp.
#pragma once
#include <math.h>
#include <quadmath.h>
#include <stdio.h>
#include <stdlib.h>

#include <random>
#include <thread>
#include <vector>

#include "../../csrc/losses.h"

namespace fl = fused_logistic;

constexpr int kThreads = 2;

template <class T>
struct Exact;
template <>
struct Exact<float> {
  using Wide = double;
  static constexpr int bits = 24, least_exponent = -126;
  static Wide exp(Wide x) { return ::exp(x); }
  static Wide log1p(Wide x) { return ::log1p(x); }
  static Wide log(Wide x) { return ::log(x); }
  // as ilogb and ldexp do for normal numbers; the library's are calls, two fifths of the sweep's time
  static int exponent(Wide x) { return int(fl::bit_cast<uint64_t>(x) >> 52) - 1023; }
  static Wide power(int n) { return fl::bit_cast<double>(uint64_t(n + 1023) << 52); }
};
template <>
struct Exact<double> {
  using Wide = __float128;
  static constexpr int bits = 53, least_exponent = -1022;
  static Wide exp(Wide x) { return expq(x); }
  static Wide log1p(Wide x) { return log1pq(x); }
  static Wide log(Wide x) { return logq(x); }
  static int exponent(Wide x) { return ilogbq(x); }
  static Wide power(int n) { return ldexpq(1, n); }
};

// |got - reference| in units in the last place of T at `of` (at the reference, where there is no other); subnormal spacing
// below the normal numbers.
template <class T>
double ulps(T got, typename Exact<T>::Wide reference, typename Exact<T>::Wide of) {
  using E = Exact<T>;
  const typename E::Wide size = of < 0 ? -of : of;
  int exponent = E::least_exponent;
  if (size >= E::power(E::least_exponent)) exponent = E::exponent(size);
  const typename E::Wide error = (typename E::Wide)got - reference;
  return double((error < 0 ? -error : error) * E::power(E::bits - 1 - exponent));
}
template <class T>
double ulps(T got, typename Exact<T>::Wide reference) {
  return ulps(got, reference, reference);
}

struct Worst {
  double ulp = 0, logit = 0;
  void update(double error, double z) {
    if (!(error <= ulp)) ulp = error, logit = z;  // NaN counts as worse
  }
  void update(const Worst& other) { update(other.ulp, other.logit); }
};
