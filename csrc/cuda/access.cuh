// How the CUDA kernels read and write memory: storage types, vectors of 16 bytes, operands of any type and shape.
#pragma once
#include "../device.h"
#include "../logistic.h"
#include "../problem.h"
#include "plan.h"

namespace fused_logistic {

// ---- Types in memory ---------------------------------------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {  // the type in which a kernel for elements of type T computes
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

template <class C, class T>
FL_DEVICE C to_arithmetic(T x) {
  return C(x);
}
template <class C>
FL_DEVICE C to_arithmetic(Half x) {
  return C(half_to_float(x.bits));
}
template <class C>
FL_DEVICE C to_arithmetic(BFloat16 x) {
  return C(bit_cast<float>(uint32_t(x.bits) << 16));
}

template <class T>
struct To {  // from arithmetic: rounds once to nearest even
  template <class C>
  FL_DEVICE T from(C x) {
    return T(x);
  }
};
template <>
struct To<Half> {
  template <class C>
  FL_DEVICE Half from(C x) {
    return {float_to_half(float(x))};
  }
};
template <>
struct To<BFloat16> {
  template <class C>
  FL_DEVICE BFloat16 from(C x) {
    return {float_to_bfloat16(float(x))};
  }
};

// ---- Loads and stores of N neighbouring elements -----------------------------------------------------------------

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T elements[N];
};
template <class T, int N>
FL_DEVICE bool is_aligned(const T* data) {
  return (reinterpret_cast<uintptr_t>(data) & (alignof(Pack<T, N>) - 1)) == 0;
}

template <class C, int N, class T>
FL_DEVICE void load_pack(const T* data, C (&out)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(data);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = to_arithmetic<C>(pack.elements[k]);
}
template <class C, int N>
FL_DEVICE void load_pack(const BFloat16* data, C (&out)[N]) {  // by pairs: one instruction an element
  const Pack<uint32_t, N / 2> pack = *reinterpret_cast<const Pack<uint32_t, N / 2>*>(data);
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    out[k] = C(bit_cast<float>(pack.elements[k / 2] << 16));
    out[k + 1] = C(bit_cast<float>(pack.elements[k / 2] & 0xffff0000u));
  }
}
template <class C, int N, class T>
FL_DEVICE void load(const T* data, int count, C (&out)[N]) {
  if (count == N && is_aligned<T, N>(data)) return load_pack(data, out);
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = k < count ? to_arithmetic<C>(data[k]) : C(0);
}
template <class T, class C, int N>
FL_DEVICE void store_pack(T* data, const C (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.elements[k] = To<T>::from(values[k]);
  *reinterpret_cast<Pack<T, N>*>(data) = pack;
}
template <class T, class C, int N>
FL_DEVICE void store(T* data, int count, const C (&values)[N]) {
  if (count == N && is_aligned<T, N>(data)) return store_pack(data, values);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k < count) data[k] = To<T>::from(values[k]);
  }
}

// Calls f with a pointer of the operand's type.
template <class F>
FL_DEVICE void with_type(DType dtype, const void* data, F f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(static_cast<const double*>(data));
    case DType::kFloat32:
      return f(static_cast<const float*>(data));
    case DType::kFloat16:
      return f(static_cast<const Half*>(data));
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    case DType::kUInt8:
      return f(static_cast<const uint8_t*>(data));
    case DType::kInt8:
      return f(static_cast<const int8_t*>(data));
    case DType::kInt16:
      return f(static_cast<const int16_t*>(data));
    case DType::kInt32:
      return f(static_cast<const int32_t*>(data));
    case DType::kInt64:
      return f(static_cast<const int64_t*>(data));
  }
}
template <class F>
FL_DEVICE void with_floating_type(DType dtype, void* data, F f) {
  if (dtype == DType::kFloat64) return f(static_cast<double*>(data));
  if (dtype == DType::kFloat32) return f(static_cast<float*>(data));
  if (dtype == DType::kFloat16) return f(static_cast<Half*>(data));
  f(static_cast<BFloat16*>(data));
}

FL_DEVICE int64_t divide(int64_t x, int64_t y) {  // both >= 0; a 64-bit division takes five times as long
  return ((x | y) >> 32) == 0 ? int64_t(uint32_t(x) / uint32_t(y)) : x / y;
}

// An operand of any type, read where it is: what is constant is read once, what is broadcast is not expanded.
template <class C>
struct Source {
  bool constant;
  C value;
  FL_DEVICE Source make(const Operand& operand, C absent) {
    Source source = {operand.data == nullptr || operand.size == 1, absent};
    if (source.constant && operand.data != nullptr) {
      with_type(operand.dtype, operand.data, [&](auto* data) { source.value = to_arithmetic<C>(data[0]); });
    }
    return source;
  }
  // Elements i .. i + count - 1 of the problem.
  template <int N>
  __device__ __forceinline__ void read(const Operand& operand, int64_t numel, int64_t i, int count, C (&out)[N]) const {
    if (constant) {
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = value;
      return;
    }
    if (is_full(operand, numel)) {
      return with_type(operand.dtype, operand.data, [&](auto* data) { load(data + i, count, out); });
    }
    int64_t place = divide(i, operand.inner), rest = i - place * operand.inner, index[N];
    place -= divide(place, operand.size) * operand.size;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      index[k] = place;
      const bool next = ++rest == operand.inner;
      rest = next ? 0 : rest;
      place = next ? (place + 1 == operand.size ? 0 : place + 1) : place;
    }
    with_type(operand.dtype, operand.data, [&](auto* data) {
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = k < count ? to_arithmetic<C>(data[index[k]]) : C(0);
    });
  }
};

}  // namespace fused_logistic
