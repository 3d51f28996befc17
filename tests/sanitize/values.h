// Values of every dtype as they lie in memory: drawn, decoded, compared. Nothing of a loss is computed here.
#pragma once
#include <math.h>
#include <string.h>

#include <iterator>

#include "../../csrc/cpu/kernels.h"
#include "guarded.h"

namespace fl = fused_logistic;
using fl::DType, fl::Operand, fl::Output, fl::Problem;

inline bool is_floating(DType dtype) { return dtype <= DType::kBFloat16; }

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
T at(const void* data, int64_t i) {
  T value;
  memcpy(&value, static_cast<const char*>(data) + i * sizeof(T), sizeof(T));
  return value;
}
template <class T>
void put(void* data, int64_t i, T value) {
  memcpy(static_cast<char*>(data) + i * sizeof(T), &value, sizeof(T));
}

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                      : exponent == 0 ? ldexp(mantissa, -24)
                                      : ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 != 0 ? -size : size;
}

template <class C>
C decoded(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kFloat64:
      return C(at<double>(data, i));
    case DType::kFloat32:
      return C(at<float>(data, i));
    case DType::kFloat16:
      return C(half_value(at<uint16_t>(data, i)));
    case DType::kBFloat16:
      return C(bits_as<float>(uint32_t(at<uint16_t>(data, i)) << 16));
    case DType::kUInt8:
      return C(at<uint8_t>(data, i));
    case DType::kInt8:
      return C(at<int8_t>(data, i));
    case DType::kInt16:
      return C(at<int16_t>(data, i));
    case DType::kInt32:
      return C(at<int32_t>(data, i));
    default:
      return C(at<int64_t>(data, i));
  }
}

// Rounded towards zero, so that what was in a range stays in it; below the normal numbers of fp16 it is 0.
inline uint16_t half_bits(double value) {
  const uint16_t sign = signbit(value) ? 0x8000 : 0;
  const double size = fabs(value);
  if (!(size >= 0x1p-14)) return sign;
  if (size >= 65504) return sign | 0x7bff;
  int exponent;
  const double fraction = frexp(size, &exponent);  // in [1/2, 1)
  return sign | uint16_t((exponent + 14) << 10) | (uint16_t(fraction * 2048) & 1023);
}
inline void encode(DType dtype, void* data, int64_t i, double value) {
  switch (dtype) {
    case DType::kFloat64:
      return put(data, i, value);
    case DType::kFloat32:
      return put(data, i, float(value));
    case DType::kFloat16:
      return put(data, i, half_bits(value));
    case DType::kBFloat16:
      return put(data, i, uint16_t(bits_as<uint32_t>(float(value)) >> 16));
    case DType::kUInt8:
    case DType::kInt8:
      return put(data, i, int8_t(fmin(value, 127)));
    case DType::kInt16:
      return put(data, i, int16_t(value));
    case DType::kInt32:
      return put(data, i, int32_t(value));
    default:
      return put(data, i, int64_t(value));
  }
}

enum class Kind { kLogit, kTarget, kWeight, kMask, kFactor, kFeature };

// Finite, targets in [0, 1], weights of at least 0: what must not give NaN.
inline double ordinary(Kind kind, Random& random) {
  const double unit = ldexp(double(random.take(8) >> 11), -53), sign = random.one_in(2) ? 1 : -1;
  const uint64_t rare = random.below(16);
  switch (kind) {
    case Kind::kLogit:
      return sign * (rare == 0   ? 0
                     : rare == 1 ? 1e20 * unit
                     : rare == 2 ? 1e-30 * unit
                     : rare < 6  ? 100 * unit
                                 : 10 * unit);
    case Kind::kTarget:
      return rare < 5 ? 0 : rare < 10 ? 1 : unit;
    case Kind::kWeight:
      return rare < 2 ? 0 : rare < 5 ? 1 : rare == 5 ? 1e4 * unit : 4 * unit;
    case Kind::kMask:
      return rare < 10;
    default:
      return sign * (rare == 0 ? 0 : 3 * unit);
  }
}

inline void fill(Kind kind, DType dtype, void* data, int64_t size, bool any, Choices& choices) {
  Random random(choices.take(8));
  for (int64_t i = 0; i < size; ++i) encode(dtype, data, i, ordinary(kind, random));
  if (!any || kind == Kind::kMask || size == 0) return;
  const double odd[] = {INFINITY,  -INFINITY, NAN,  -0.0, 3.4e38, -3.4e38, 1.7e308,
                        0x1p-1074, 0x1p-149,  88.8, -104, 2,      -1};
  for (uint64_t n = choices.below(9); n > 0; --n) {
    const int64_t i = int64_t(choices.below(uint64_t(size)));
    const uint64_t which = choices.below(std::size(odd) + 4);
    if (which < std::size(odd) && is_floating(dtype)) {
      encode(dtype, data, i, odd[which]);
      if (dtype == DType::kFloat16 && which < 3)
        put(data, i, uint16_t(which == 0 ? 0x7c00 : which == 1 ? 0xfc00 : 0x7e00));
    } else {  // any bits
      const uint64_t bits = choices.take(int(size_of(dtype)));
      memcpy(static_cast<char*>(data) + i * size_of(dtype), &bits, size_of(dtype));
    }
  }
}

// Equal bit for bit, all NaNs being one value.
inline bool same_bits(DType dtype, const void* a, const void* b, int64_t i) {
  const size_t bytes = size_of(dtype);
  if (memcmp(static_cast<const char*>(a) + i * bytes, static_cast<const char*>(b) + i * bytes, bytes) == 0) return true;
  const double x = decoded<double>(dtype, a, i), y = decoded<double>(dtype, b, i);
  return x != x && y != y;
}
