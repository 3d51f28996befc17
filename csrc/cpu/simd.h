// SIMD values for logistic.h: the compiler's vector extensions at the native width of the instruction set for which this
// file is compiled (FL_AVX512, FL_AVX2, or neither: SSE2, NEON, whatever 16 bytes lower to). Operators come with the
// type; what is spelled out is fma, which has no operator, and the conversions between storage types.
// Everything is static or in an anonymous namespace: code built for one instruction set must not be linked into another.
#pragma once
#if defined(FL_AVX512) || defined(FL_AVX2)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <type_traits>

#include "../logistic.h"
#include "../problem.h"

// What dozens of kernels share and each calls once a row or less: inlined into all of them it would be most of what there
// is to compile.
#define FL_CALLED __attribute__((noinline))

namespace fused_logistic {
namespace {

#if defined(FL_AVX512)
constexpr int kBytes = 64;
#elif defined(FL_AVX2)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

#if defined(FL_AVX512) || defined(FL_AVX2) || defined(__aarch64__) || defined(__FP_FAST_FMA)
constexpr bool kHasFma = true;  // fma is an instruction
#else
constexpr bool kHasFma = false;
#endif

typedef float FloatVector __attribute__((vector_size(kBytes)));
typedef double DoubleVector __attribute__((vector_size(kBytes)));
typedef uint32_t UInt32Vector __attribute__((vector_size(kBytes)));
typedef uint64_t UInt64Vector __attribute__((vector_size(kBytes)));
typedef uint16_t UInt16Vector __attribute__((vector_size(kBytes / 2)));

// The operators' only missing partner.
#if defined(FL_AVX512)
FL_FN FloatVector fma_vector(FloatVector x, FloatVector y, FloatVector z) { return _mm512_fmadd_ps(x, y, z); }
FL_FN DoubleVector fma_vector(DoubleVector x, DoubleVector y, DoubleVector z) { return _mm512_fmadd_pd(x, y, z); }
#elif defined(FL_AVX2)
FL_FN FloatVector fma_vector(FloatVector x, FloatVector y, FloatVector z) { return _mm256_fmadd_ps(x, y, z); }
FL_FN DoubleVector fma_vector(DoubleVector x, DoubleVector y, DoubleVector z) { return _mm256_fmadd_pd(x, y, z); }
#elif defined(__aarch64__)
FL_FN FloatVector fma_vector(FloatVector x, FloatVector y, FloatVector z) { return vfmaq_f32(z, x, y); }
FL_FN DoubleVector fma_vector(DoubleVector x, DoubleVector y, DoubleVector z) { return vfmaq_f64(z, x, y); }
#else
// libm's fma is exactly rounded with or without the instruction; on CPUs that lack it, this is the slow path. A function,
// because a call for every lane wherever the formula has an fma would take the compiler a minute.
FL_CALLED FloatVector fma_vector(FloatVector x, FloatVector y, FloatVector z) {
  for (int i = 0; i < kBytes / 4; ++i) x[i] = __builtin_fmaf(x[i], y[i], z[i]);
  return x;
}
FL_CALLED DoubleVector fma_vector(DoubleVector x, DoubleVector y, DoubleVector z) {
  for (int i = 0; i < kBytes / 8; ++i) x[i] = __builtin_fma(x[i], y[i], z[i]);
  return x;
}
#endif

// x < low ? low : x, x == 0 ? z : x y + z and, where it is an instruction, x 2^n, each in the fewest instructions.
#if defined(FL_AVX512)
FL_FN FloatVector scale_vector(FloatVector x, FloatVector n) { return _mm512_scalef_ps(x, n); }
FL_FN DoubleVector scale_vector(DoubleVector x, DoubleVector n) { return _mm512_scalef_pd(x, n); }
FL_FN FloatVector at_least_vector(FloatVector x, FloatVector low) { return _mm512_max_ps(low, x); }
FL_FN DoubleVector at_least_vector(DoubleVector x, DoubleVector low) { return _mm512_max_pd(low, x); }
FL_FN FloatVector add_term_vector(FloatVector x, FloatVector y, FloatVector z) {
  return _mm512_mask3_fmadd_ps(x, y, z, _mm512_cmp_ps_mask(x, FloatVector{}, _CMP_NEQ_UQ));
}
FL_FN DoubleVector add_term_vector(DoubleVector x, DoubleVector y, DoubleVector z) {
  return _mm512_mask3_fmadd_pd(x, y, z, _mm512_cmp_pd_mask(x, DoubleVector{}, _CMP_NEQ_UQ));
}
#else
#if defined(FL_AVX2)
FL_FN FloatVector at_least_vector(FloatVector x, FloatVector low) { return _mm256_max_ps(low, x); }
FL_FN DoubleVector at_least_vector(DoubleVector x, DoubleVector low) { return _mm256_max_pd(low, x); }
#else
template <class V>
FL_FN V at_least_vector(V x, V low) {
  return x < low ? low : x;
}
#endif
template <class V>
FL_FN V add_term_vector(V x, V y, V z) {
  return x == V{} ? z : fma_vector(x, y, z);
}
#endif

}  // namespace

template <class V, class S, class B>
struct VectorValue {
  using Scalar = S;
  using Bits = B;
  FL_FN V fma(V x, V y, V z) { return fma_vector(x, y, z); }
  template <class Mask>
  FL_FN V select(Mask condition, V x, V y) {
    return condition ? x : y;
  }
  FL_FN V at_least(V x, V low) { return at_least_vector(x, low); }
  template <class Mask>
  FL_FN bool any(Mask mask) {  // whether a lane is true; a true lane is all ones
    uint64_t parts[sizeof(Mask) / 8], all = 0;
    memcpy(parts, &mask, sizeof(mask));
    for (uint64_t part : parts) all |= part;
    return all != 0;
  }
  FL_FN V add_term(V x, V y, V z) { return add_term_vector(x, y, z); }
#if defined(FL_AVX512)
  FL_FN V scale(V x, V n) { return scale_vector(x, n); }
#endif
  FL_FN V splat(S x) { return x - V{}; }  // exact for every x, -0.0 included; compiles to a broadcast
  FL_FN B to_bits(V x) { return bit_cast<B>(x); }
  FL_FN V from_bits(B x) { return bit_cast<V>(x); }
};
template <>
struct Value<FloatVector> : VectorValue<FloatVector, float, UInt32Vector> {};
template <>
struct Value<DoubleVector> : VectorValue<DoubleVector, double, UInt64Vector> {};

// Two values that go through the formula side by side; a pair of pairs is four. The formula is one long chain of dependent
// operations, and the CPU's scheduler is too small to overlap one chain with the next by itself.
template <class V>
struct Pair {
  V first, second;
};
#define FL_PAIR_OPERATOR(op)                                                             \
  template <class V>                                                                     \
  FL_FN auto operator op(Pair<V> x, Pair<V> y) {                                         \
    return Pair<decltype(x.first op y.first)>{x.first op y.first, x.second op y.second}; \
  }
FL_PAIR_OPERATOR(+)
FL_PAIR_OPERATOR(-)
FL_PAIR_OPERATOR(*)
FL_PAIR_OPERATOR(/)
FL_PAIR_OPERATOR(&)
FL_PAIR_OPERATOR(|)
FL_PAIR_OPERATOR(<)
FL_PAIR_OPERATOR(==)
FL_PAIR_OPERATOR(!=)
#undef FL_PAIR_OPERATOR
template <class V>
FL_FN Pair<V> operator-(Pair<V> x) {
  return {-x.first, -x.second};
}
template <class V>
FL_FN Pair<V> operator<<(Pair<V> x, int places) {
  return {x.first << places, x.second << places};
}
template <class V>
FL_FN Pair<V> operator>>(Pair<V> x, int places) {
  return {x.first >> places, x.second >> places};
}

template <class V>
struct Value<Pair<V>> {
  using Scalar = typename Value<V>::Scalar;
  using Bits = Pair<typename Value<V>::Bits>;
  FL_FN Pair<V> fma(Pair<V> x, Pair<V> y, Pair<V> z) {
    return {Value<V>::fma(x.first, y.first, z.first), Value<V>::fma(x.second, y.second, z.second)};
  }
  template <class Mask>
  FL_FN Pair<V> select(Pair<Mask> condition, Pair<V> x, Pair<V> y) {
    return {Value<V>::select(condition.first, x.first, y.first),
            Value<V>::select(condition.second, x.second, y.second)};
  }
  FL_FN Pair<V> at_least(Pair<V> x, Pair<V> low) {
    return {Value<V>::at_least(x.first, low.first), Value<V>::at_least(x.second, low.second)};
  }
  FL_FN Pair<V> add_term(Pair<V> x, Pair<V> y, Pair<V> z) {
    return {Value<V>::add_term(x.first, y.first, z.first), Value<V>::add_term(x.second, y.second, z.second)};
  }
  FL_FN Pair<V> scale(Pair<V> x, Pair<V> n)
    requires requires { Value<V>::scale(x.first, n.first); }
  {
    return {Value<V>::scale(x.first, n.first), Value<V>::scale(x.second, n.second)};
  }
  template <class Mask>
  FL_FN bool any(Pair<Mask> mask) {
    return Value<V>::any(mask.first | mask.second);
  }
  FL_FN Pair<V> splat(Scalar x) { return {Value<V>::splat(x), Value<V>::splat(x)}; }
  FL_FN Bits to_bits(Pair<V> x) { return {Value<V>::to_bits(x.first), Value<V>::to_bits(x.second)}; }
  FL_FN Pair<V> from_bits(Bits x) { return {Value<V>::from_bits(x.first), Value<V>::from_bits(x.second)}; }
};

namespace {

// Every second value of a and then of b, from the first (0) or from the second (1) on; compilers pick them one by one.
#if defined(FL_AVX512)
template <int kFrom>
FL_FN FloatVector every_second(FloatVector a, FloatVector b) {
  const __m512i first = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(kFrom)), b);
}
template <int kFrom>
FL_FN DoubleVector every_second(DoubleVector a, DoubleVector b) {
  const __m512i first = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_pd(a, _mm512_add_epi64(first, _mm512_set1_epi64(kFrom)), b);
}
#elif defined(FL_AVX2)
template <int kFrom>
FL_FN FloatVector every_second(FloatVector a, FloatVector b) {
  const __m256d by_half = _mm256_castps_pd(_mm256_shuffle_ps(a, b, kFrom == 0 ? 0x88 : 0xdd));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(by_half, 0xd8));
}
template <int kFrom>
FL_FN DoubleVector every_second(DoubleVector a, DoubleVector b) {
  return _mm256_permute4x64_pd(_mm256_shuffle_pd(a, b, kFrom == 0 ? 0x0 : 0xf), 0xd8);
}
#else
template <int kFrom, class V>
FL_FN V every_second(V a, V b) {
  constexpr int w = sizeof(V) / sizeof(a[0]);
  V result = a;
  for (int k = 0; k < w; ++k) result[k] = 2 * k < w ? a[(2 * k + kFrom) % w] : b[(2 * k + kFrom) % w];
  return result;
}
#endif

// ---- What one step of a kernel works on --------------------------------------------------------------------------

// Vectors of C (float or double), and how many go through the formula side by side, by measurements with AVX2 (fp64 has
// the longer polynomials, so longer chains); ValueOfFew where a kernel has few elements at a time, or few registers left. Where fma is a call
// there is nothing to overlap, and side by side only adds code.
template <class C>
struct Simd;
template <>
struct Simd<float> {
  using Vector = FloatVector;
  using Value = std::conditional_t<kHasFma, Pair<Pair<Vector>>, Vector>;
  using ValueOfFew = std::conditional_t<kHasFma, Pair<Vector>, Vector>;
};
template <>
struct Simd<double> {
  using Vector = DoubleVector;
  using Value = std::conditional_t<kHasFma, Pair<Pair<Pair<Vector>>>, Vector>;
  using ValueOfFew = std::conditional_t<kHasFma, Pair<Vector>, Vector>;
};

template <class V>
constexpr int64_t width = sizeof(V) / sizeof(typename Value<V>::Scalar);

}  // namespace
}  // namespace fused_logistic
