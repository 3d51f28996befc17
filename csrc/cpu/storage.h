// What vectors load and store: rows of fp32, fp64, fp16 and bf16, each converted to and from the type of the arithmetic.
#pragma once
#include "simd.h"

namespace fused_logistic {
namespace {

template <class V, class T>
FL_FN V load_unaligned(const T* data) {
  V v;
  memcpy(&v, data, sizeof(v));
  return v;
}

// 16-bit lanes to 32-bit lanes and back (the values fit); compilers make poor code of the general conversion.
#if defined(FL_AVX512)
FL_FN UInt32Vector widen(UInt16Vector x) { return UInt32Vector(_mm512_cvtepu16_epi32(bit_cast<__m256i>(x))); }
FL_FN UInt16Vector narrow(UInt32Vector x) { return UInt16Vector(_mm512_cvtepi32_epi16(bit_cast<__m512i>(x))); }
#elif defined(FL_AVX2)
FL_FN UInt32Vector widen(UInt16Vector x) { return UInt32Vector(_mm256_cvtepu16_epi32(bit_cast<__m128i>(x))); }
FL_FN UInt16Vector narrow(UInt32Vector x) {
  const __m256i v = bit_cast<__m256i>(x);
  return UInt16Vector(_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
#else
FL_FN UInt32Vector widen(UInt16Vector x) { return __builtin_convertvector(x, UInt32Vector); }
FL_FN UInt16Vector narrow(UInt32Vector x) { return __builtin_convertvector(x, UInt16Vector); }
#endif

// fp16 bits in 32-bit lanes <-> fp32: integer operations and one exact (or, to fp16, one rounding) floating operation.
FL_FN FloatVector half_to_float(UInt32Vector half) {
  const UInt32Vector magnitude = half & 0x7fffu;
  const FloatVector scaled = bit_cast<FloatVector>(magnitude << 13) * 0x1p112f;
  const UInt32Vector special = bit_cast<UInt32Vector>(magnitude >= 0x7c00u) & 0x7f800000u;  // inf and NaN
  return bit_cast<FloatVector>(bit_cast<UInt32Vector>(scaled) | special | ((half & 0x8000u) << 16));
}
FL_FN UInt32Vector float_to_half(FloatVector x) {
  const UInt32Vector bits = bit_cast<UInt32Vector>(x), magnitude = bits & 0x7fffffffu;
  const UInt32Vector normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below the smallest normal fp16, adding 1/2 rounds at the place of fp16's last subnormal bit.
  const UInt32Vector subnormal = bit_cast<UInt32Vector>(bit_cast<FloatVector>(magnitude) + 0.5f) - 0x3f000000u;
  const UInt32Vector infinity = magnitude - magnitude + 0x7c00u, nan = magnitude - magnitude + 0x7e00u;
  UInt32Vector half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? infinity : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return half | ((bits >> 16) & 0x8000u);
}

FL_FN FloatVector load(const float* data) { return load_unaligned<FloatVector>(data); }
FL_FN DoubleVector load(const double* data) { return load_unaligned<DoubleVector>(data); }
FL_FN FloatVector to_float(UInt16Vector bits, BFloat16) { return bit_cast<FloatVector>(widen(bits) << 16); }
FL_FN FloatVector to_float(UInt16Vector bits, Half) {
#if defined(FL_AVX512)
  return _mm512_cvtph_ps(bit_cast<__m256i>(bits));
#elif defined(FL_AVX2)
  return _mm256_cvtph_ps(bit_cast<__m128i>(bits));
#else
  return half_to_float(widen(bits));
#endif
}
FL_FN FloatVector load(const BFloat16* data) { return to_float(load_unaligned<UInt16Vector>(data), BFloat16{}); }
FL_FN FloatVector load(const Half* data) { return to_float(load_unaligned<UInt16Vector>(data), Half{}); }

// The first `count` lanes, less than there are, and zeros: nothing behind them is read.
template <class T>
FL_FN auto load_first(const T* data, int64_t count) {
#if defined(FL_AVX512)
  const auto lanes = __mmask16((1u << count) - 1);
  if constexpr (std::is_same_v<T, float>) {
    return FloatVector(_mm512_maskz_loadu_ps(lanes, data));
  } else if constexpr (std::is_same_v<T, double>) {
    return DoubleVector(_mm512_maskz_loadu_pd(__mmask8(lanes), data));
  } else {
    return to_float(UInt16Vector(_mm256_maskz_loadu_epi16(lanes, data)), T{});
  }
#else
#if defined(FL_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return FloatVector(_mm256_maskload_ps(data, _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(count)), places)));
  } else if constexpr (std::is_same_v<T, double>) {
    const __m256i places = _mm256_setr_epi64x(0, 1, 2, 3);
    return DoubleVector(_mm256_maskload_pd(data, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), places)));
  }
#endif
  T values[width<FloatVector>] = {};
  memcpy(values, data, count * sizeof(T));
  return load(values);
#endif
}

FL_FN void store(float* data, FloatVector x) { memcpy(data, &x, sizeof(x)); }
FL_FN void store(double* data, DoubleVector x) { memcpy(data, &x, sizeof(x)); }
FL_FN void store(BFloat16* data, FloatVector x) {
  const UInt32Vector bits = bit_cast<UInt32Vector>(x);
  const UInt32Vector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UInt32Vector nan = bits - bits + 0x7fc0u;
  const UInt16Vector result = narrow(x == x ? rounded : nan);
  memcpy(data, &result, sizeof(result));
}
// Two vectors of results of arithmetic, whose NaN are quiet. A carry out of the lower half, of 0x7fff + the last bit that stays,
// is the top bit of an average of 16 bits: half of the operations.
#if defined(FL_AVX512)
FL_FN void store(BFloat16* data, Pair<FloatVector> x) {
  const __m512i first = bit_cast<__m512i>(x.first), second = bit_cast<__m512i>(x.second);
  const __m512i low_places = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28,
                                              26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i high_places = _mm512_add_epi16(low_places, _mm512_set1_epi16(1));
  const __m512i low = _mm512_permutex2var_epi16(first, low_places, second);
  const __m512i high = _mm512_permutex2var_epi16(first, high_places, second);
  const __m512i half = _mm512_or_si512(_mm512_and_si512(high, _mm512_set1_epi16(1)), _mm512_set1_epi16(0x7ffe));
  const __m512i rounded = _mm512_add_epi16(high, _mm512_srli_epi16(_mm512_avg_epu16(low, half), 15));
  const auto nan = _mm512_cmpgt_epu16_mask(_mm512_add_epi16(high, high), _mm512_set1_epi16(int16_t(0xff00)));
  const __m512i result = _mm512_mask_blend_epi16(nan, rounded, _mm512_set1_epi16(0x7fc0));
  memcpy(data, &result, sizeof(result));
}
#elif defined(FL_AVX2)
FL_FN void store(BFloat16* data, Pair<FloatVector> x) {
  const __m256i first = bit_cast<__m256i>(x.first), second = bit_cast<__m256i>(x.second), zero = {};
  const __m256i low =
      _mm256_packus_epi32(_mm256_blend_epi16(first, zero, 0xaa), _mm256_blend_epi16(second, zero, 0xaa));
  const __m256i high = _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
  const __m256i half = _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi16(1)), _mm256_set1_epi16(0x7ffe));
  const __m256i rounded = _mm256_add_epi16(high, _mm256_srli_epi16(_mm256_avg_epu16(low, half), 15));
  const __m256i magnitude = _mm256_and_si256(high, _mm256_set1_epi16(0x7fff));
  const __m256i nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(0x7f80));
  const __m256i by_lane = _mm256_blendv_epi8(rounded, _mm256_set1_epi16(0x7fc0), nan);
  const __m256i result = _mm256_permute4x64_epi64(by_lane, 0xd8);
  memcpy(data, &result, sizeof(result));
}
#endif
FL_FN void store(Half* data, FloatVector x) {
#if defined(FL_AVX512)
  const __m256i result = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FL_AVX2)
  const __m128i result = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const UInt16Vector result = narrow(float_to_half(x));
#endif
  memcpy(data, &result, sizeof(result));
}

template <class V, class T>
FL_FN void load_into(V& value, const T* data) {
  value = load(data);
}
template <class V, class T>
FL_FN void load_into(Pair<V>& value, const T* data) {
  load_into(value.first, data);
  load_into(value.second, data + width<V>);
}
template <class V, class T>
FL_FN V load_as(const T* data) {
  V value;
  load_into(value, data);
  return value;
}
template <class V, class T>
FL_FN void store(T* data, Pair<V> x) {
  store(data, x.first);
  store(data + width<V>, x.second);
}

// ---- The caches ---------------------------------------------------------------------------------------------------

// Asks for the lines of so many bytes: to be read, into the first-level cache if that is near enough, else into the second;
// or to be written. Always inlined: GCC leaves out the call of a function that does nothing else.
enum class Prefetch { kRead, kReadNear, kWrite };
template <Prefetch kFor>
FL_FN void prefetch(const void* data, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += 64)
    __builtin_prefetch(static_cast<const char*>(data) + k, kFor == Prefetch::kWrite, kFor == Prefetch::kRead ? 2 : 3);
}

// Past the caches: what is written this way is not read into them first. out has a vector's alignment; the calling thread's
// end_stream() comes before another thread reads it.
#if defined(FL_AVX512) || defined(FL_AVX2)
constexpr bool kCanStream = true;
#if defined(FL_AVX512)
FL_FN void stream_vector(void* out, UInt32Vector x) {
  _mm512_stream_si512(static_cast<__m512i*>(out), bit_cast<__m512i>(x));
}
#else
FL_FN void stream_vector(void* out, UInt32Vector x) {
  _mm256_stream_si256(static_cast<__m256i*>(out), bit_cast<__m256i>(x));
}
#endif
FL_FN void end_stream() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
FL_FN void stream_vector(void* out, UInt32Vector x) { memcpy(out, &x, sizeof(x)); }
FL_FN void end_stream() {}
#endif

}  // namespace
}  // namespace fused_logistic
