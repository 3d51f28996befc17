// How a kernel reads an operand that is broadcast or of another type: row by row of kLanes elements, converted into a
// buffer that stays in the first-level cache, so that nothing is ever expanded or converted in memory.
#pragma once
#include "simd.h"

namespace fused_logistic {
namespace {

template <class T>
constexpr DType dtype_of = DType::kFloat32;
template <>
constexpr DType dtype_of<double> = DType::kFloat64;
template <>
constexpr DType dtype_of<Half> = DType::kFloat16;
template <>
constexpr DType dtype_of<BFloat16> = DType::kBFloat16;

// out[0 .. count) = data[start .. start + count), converted to C.
template <class C, class T>
void convert(const T* data, int64_t start, int64_t count, C* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = C(data[start + i]);
}
// The 16-bit floats go through the vector loads (a padded copy for what remains), so that they are decoded once.
template <class C, class T>
void convert_16bit(const T* data, int64_t start, int64_t count, C* out) {
  constexpr int64_t w = kBytes / 4;
  float values[w];
  for (int64_t i = 0; i < count; i += w) {
    const int64_t n = count - i < w ? count - i : w;
    T padded[w] = {};
    memcpy(padded, data + start + i, n * sizeof(T));
    store(values, load(padded));
    for (int64_t k = 0; k < n; ++k) out[i + k] = C(values[k]);
  }
}

template <class C>
void read(const Operand& operand, int64_t start, int64_t count, C* out) {
  switch (operand.dtype) {
    case DType::kFloat64:
      return convert(static_cast<const double*>(operand.data), start, count, out);
    case DType::kFloat32:
      return convert(static_cast<const float*>(operand.data), start, count, out);
    case DType::kFloat16:
      return convert_16bit(static_cast<const Half*>(operand.data), start, count, out);
    case DType::kBFloat16:
      return convert_16bit(static_cast<const BFloat16*>(operand.data), start, count, out);
    case DType::kUInt8:
      return convert(static_cast<const uint8_t*>(operand.data), start, count, out);
    case DType::kInt8:
      return convert(static_cast<const int8_t*>(operand.data), start, count, out);
    case DType::kInt16:
      return convert(static_cast<const int16_t*>(operand.data), start, count, out);
    case DType::kInt32:
      return convert(static_cast<const int32_t*>(operand.data), start, count, out);
    case DType::kInt64:
      return convert(static_cast<const int64_t*>(operand.data), start, count, out);
  }
}

// One operand as rows of C. A row that is already there as C is not copied; a scalar and a short period are converted
// once per thread, a longer period or a repetition once per row.
template <class C>
class Source {
 public:
  Source(const Operand& operand, int64_t numel, C absent) : operand_(operand) {
    if (numel > 0) prepare(numel, absent);  // else no row is asked for
  }

  // Elements [begin, begin + count) of the problem; count <= kLanes. Valid until the next call.
  const C* row(int64_t begin, int64_t count) {
    switch (kind_) {
      case Kind::kConstant:
        return buffer_;
      case Kind::kInPlace:
        return static_cast<const C*>(operand_.data) + begin;
      case Kind::kTiled:
        return buffer_ + begin % operand_.size;
      default:
        return read_row(begin, count);
    }
  }

 private:
  FL_CALLED void prepare(int64_t numel, C absent) {
    if (operand_.data == nullptr || operand_.size == 1) {
      if (operand_.data != nullptr) read(operand_, 0, 1, &absent);
      for (int64_t i = 0, n = numel < kLanes ? numel : kLanes; i < n; ++i) buffer_[i] = absent;
      kind_ = Kind::kConstant;
    } else if (is_full(operand_, numel) && operand_.dtype == dtype_of<C>) {
      kind_ = Kind::kInPlace;
    } else if (operand_.inner == 1 && operand_.size <= kLanes) {
      read(operand_, 0, operand_.size, buffer_);
      for (int64_t i = operand_.size; i < 2 * kLanes; ++i) buffer_[i] = buffer_[i - operand_.size];
      kind_ = Kind::kTiled;
    } else {
      kind_ = Kind::kRead;
    }
  }
  FL_CALLED const C* read_row(int64_t begin, int64_t count) {
    int64_t index = begin / operand_.inner % operand_.size;
    if (operand_.inner == 1) {
      for (int64_t done = 0, n; done < count; done += n, index = 0) {
        n = operand_.size - index < count - done ? operand_.size - index : count - done;
        read(operand_, index, n, buffer_ + done);
      }
      return buffer_;
    }
    int64_t run = operand_.inner - begin % operand_.inner;
    for (int64_t done = 0; done < count; run = operand_.inner, index = index + 1 == operand_.size ? 0 : index + 1) {
      C value;
      read(operand_, index, 1, &value);
      const int64_t end = run < count - done ? done + run : count;
      while (done < end) buffer_[done++] = value;
    }
    return buffer_;
  }

  enum class Kind { kConstant, kInPlace, kTiled, kRead };
  const Operand operand_;
  Kind kind_ = Kind::kConstant;
  alignas(64) C buffer_[2 * kLanes];
};

}  // namespace
}  // namespace fused_logistic
