// How the CUDA kernels read and write memory: storage types, vectors, operands of any type and shape.
#pragma once
#include <type_traits>

#include "../device.h"
#include "../logistic.h"
#include "../problem.h"
#include "plan.h"

namespace fused_logistic {

// ---- Types in memory ---------------------------------------------------------------------------------------------

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
struct alignas(vector_alignment(N * sizeof(T))) Pack {
  T elements[N];
};

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
// The first `count` of N elements, one by one.
template <class C, int N, class T>
FL_DEVICE void load_some(const T* data, int count, C (&out)[N]) {
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
FL_DEVICE void store_some(T* data, int count, const C (&values)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k < count) data[k] = To<T>::from(values[k]);
  }
}

// ---- Types that are known at run time ----------------------------------------------------------------------------

// The types that an operand may have; one: it is known at compile time.
template <class... T>
struct Types {};
using FloatingTypes = Types<double, float, Half, BFloat16>;
using IntegerTypes = Types<uint8_t, int8_t, int16_t, int32_t, int64_t>;
using AnyTypes = Types<double, float, Half, BFloat16, uint8_t, int8_t, int16_t, int32_t, int64_t>;

// Calls f with a pointer of the operand's type; Data: void or const void.
template <class T, class... Rest, class Data, class F>
FL_DEVICE void with_type(Types<T, Rest...>, DType dtype, Data* data, F f) {
  using Pointer = std::conditional_t<std::is_const_v<Data>, const T*, T*>;
  if constexpr (sizeof...(Rest) == 0) {
    f(static_cast<Pointer>(data));
  } else if (dtype == kDType<T>) {
    f(static_cast<Pointer>(data));
  } else {
    with_type(Types<Rest...>{}, dtype, data, f);
  }
}

// ---- Operands ----------------------------------------------------------------------------------------------------

FL_DEVICE uint32_t quotient(uint32_t x, const Division& by) {
  return uint32_t((uint64_t(__umulhi(x, by.multiplier)) + x) >> by.shift);
}
// x / y, both >= 0. fits: whether every x of the launch is below 2^32; a 64-bit division takes ten times as long.
template <bool kFits>
FL_DEVICE int64_t divide(int64_t x, int64_t y, const Division& by_y, bool fits) {
  return kFits || fits ? int64_t(quotient(uint32_t(x), by_y)) : x / y;
}

// An operand of one of the types T, read where it is: what is constant is read once, what is broadcast is not expanded.
// kTyped: in a kernel that reads by vectors, and whose broadcast operands have less than 2^32 elements.
template <class C, class T, bool kTyped>
struct Source {
  C value;
  FL_DEVICE Source make(const Operand& operand, C absent) {
    Source source = {absent};
    if (operand.data != nullptr && operand.size == 1) {
      with_type(AnyTypes{}, operand.dtype, operand.data, [&](auto* data) { source.value = to_arithmetic<C>(data[0]); });
    }
    return source;
  }
  // Elements i .. i + count - 1 of the problem; kWhole: N of them, i being a multiple of N.
  template <bool kWhole, int N>
  __device__ __forceinline__ void read(const Operand& operand, const Layout& layout, bool fits, int64_t i, int count,
                                       C (&out)[N]) const {
    const Reading reading = layout.reading;
    if (reading == Reading::kConstant) {
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = value;
      return;
    }
    int64_t place = i, rest = 0;
    if (reading != Reading::kFull) {
      const int64_t group = divide<kTyped>(i, operand.inner, layout.by_inner, fits);
      rest = i - group * operand.inner;
      place = group - divide<kTyped>(group, operand.size, layout.by_size, fits) * operand.size;
    }
    if constexpr (kTyped && kWhole) {
      if (reading == Reading::kShared) {
        with_type(T{}, operand.dtype, operand.data, [&](auto* data) { out[0] = to_arithmetic<C>(data[place]); });
#pragma unroll
        for (int k = 1; k < N; ++k) out[k] = out[0];
        return;
      }
      if (reading != Reading::kGathered) {
        return with_type(T{}, operand.dtype, operand.data, [&](auto* data) { load_pack(data + place, out); });
      }
    }
    int64_t index[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      index[k] = place;
      const bool next = ++rest == operand.inner;
      rest = next ? 0 : rest;
      place = next ? (place + 1 == operand.size ? 0 : place + 1) : place;
    }
    with_type(T{}, operand.dtype, operand.data, [&](auto* data) {
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = k < count ? to_arithmetic<C>(data[index[k]]) : C(0);
    });
  }
};

// Targets i .. i + count - 1 of class indices.
template <class C, int N>
FL_DEVICE void read_classes(const Problem& problem, const Layout& layout, bool fits, int64_t i, int count,
                            C (&out)[N]) {
  const Operand& of = problem.target;
  const bool has_ignored = problem.options.has_ignore_index;
  const int64_t ignored = problem.options.ignore_index;
  const int64_t group = divide<false>(i, of.inner, layout.by_inner, fits);
  const int64_t outer = divide<false>(group, of.classes, layout.by_size, fits);
  int64_t rest = i - group * of.inner, own = group - outer * of.classes, first = outer * of.inner;
  with_type(IntegerTypes{}, of.dtype, of.data, [&](auto* data) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int64_t index = k < count ? int64_t(data[first + rest]) : 0;
      out[k] = has_ignored && index == ignored ? C(__builtin_nan("")) : C(index == own);
      const bool next_class = ++rest == of.inner, next_group = next_class && own + 1 == of.classes;
      rest = next_class ? 0 : rest;
      own = next_group ? 0 : next_class ? own + 1 : own;
      first = next_group ? first + of.inner : first;
    }
  });
}

}  // namespace fused_logistic
