// How a kernel reads an operand that is broadcast or of another type: row by row of kLanes elements, converted into a
// buffer that stays in the first-level cache, so that nothing is ever expanded or converted in memory (Source). And how it
// writes a result of another type, or a large one (Sink).
#pragma once
#include "storage.h"

namespace fused_logistic {
namespace {

template <class T>
constexpr bool is_16bit = kDType<T> == DType::kFloat16 || kDType<T> == DType::kBFloat16;

// out[0 .. count) = data[start .. start + count), converted. To and from the 16-bit floats by way of fp32 and the vector
// loads and stores, what remains from or to a padded copy, so that they are decoded and rounded in one place.
template <class From, class To>
void convert(const From* data, int64_t start, int64_t count, To* out) {
  if constexpr (!is_16bit<From> && !is_16bit<To>) {
    for (int64_t i = 0; i < count; ++i) out[i] = To(data[start + i]);
  } else {
    using Between = std::conditional_t<is_16bit<From>, From, float>;
    using Result = std::conditional_t<is_16bit<To>, To, float>;
    constexpr int64_t w = width<FloatVector>;
    int64_t i = 0;
    if constexpr (std::is_same_v<From, Between> && std::is_same_v<To, Result>) {
      for (; i + w <= count; i += w) store(out + i, load(data + start + i));
    }
    for (; i < count; i += w) {
      const int64_t n = count - i < w ? count - i : w;
      Between padded[w] = {};
      Result result[w];
      for (int64_t k = 0; k < n; ++k) padded[k] = Between(data[start + i + k]);
      store(result, load(padded));
      for (int64_t k = 0; k < n; ++k) out[i + k] = To(result[k]);
    }
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
      return convert(static_cast<const Half*>(operand.data), start, count, out);
    case DType::kBFloat16:
      return convert(static_cast<const BFloat16*>(operand.data), start, count, out);
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
  // options: of a target, whose class indices may be ignored
  Source(const Operand& operand, int64_t numel, C absent, const Options& options = {})
      : operand_(operand), has_ignored_(options.has_ignore_index), ignored_(options.ignore_index) {
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
      case Kind::kClasses:
        return read_classes(begin, count);
      default:
        return read_row(begin, count);
    }
  }

 private:
  FL_CALLED void prepare(int64_t numel, C absent) {
    if (is_constant(operand_)) {
      if (operand_.data != nullptr) read(operand_, 0, 1, &absent);
      for (int64_t i = 0, n = numel < kLanes ? numel : kLanes; i < n; ++i) buffer_[i] = absent;
      kind_ = Kind::kConstant;
    } else if (is_full(operand_, numel) && operand_.dtype == kDType<C>) {
      kind_ = Kind::kInPlace;
    } else if (operand_.classes > 0) {
      kind_ = Kind::kClasses;
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
      // the next row: by then the hardware's own prefetching has stopped
      const int64_t element = size_of(operand_.dtype), next = index + kLanes;
      if (next + kLanes <= operand_.size) {
        prefetch<Prefetch::kRead>(static_cast<const char*>(operand_.data) + next * element, kLanes * element);
      }
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

  // Row by row, as all else here: there is no more of the classes' matrix than this.
  FL_CALLED const C* read_classes(int64_t begin, int64_t count) {
    const int64_t inner = operand_.inner, classes = operand_.classes;
    const C nan = C(__builtin_nan(""));
    const auto is_ignored = [&](int64_t index) { return has_ignored_ && index == ignored_; };
    int64_t indices[kLanes];
    if (inner == 1) {  // the classes side by side, of which one at most is not 0
      const int64_t first = begin / classes, number = (begin + count - 1) / classes - first + 1;
      read(operand_, first, number, indices);
      for (int64_t i = 0; i < count; ++i) buffer_[i] = 0;
      for (int64_t k = 0; k < number; ++k) {
        const int64_t start = (first + k) * classes - begin, index = indices[k];
        if (is_ignored(index)) {
          const int64_t end = start + classes < count ? start + classes : count;
          for (int64_t i = start < 0 ? 0 : start; i < end; ++i) buffer_[i] = nan;
        } else if (index >= 0 && index < classes && start + index >= 0 && start + index < count) {
          buffer_[start + index] = 1;
        }
      }
      return buffer_;
    }
    int64_t run = inner - begin % inner, group = begin / inner;
    for (int64_t done = 0; done < count; run = inner, ++group) {
      const int64_t n = run < count - done ? run : count - done, own = group % classes;
      read(operand_, group / classes * inner + inner - run, n, indices);
      for (int64_t k = 0; k < n; ++k) buffer_[done + k] = is_ignored(indices[k]) ? nan : C(indices[k] == own);
      done += n;
    }
    return buffer_;
  }

  enum class Kind { kConstant, kInPlace, kClasses, kTiled, kRead };
  const Operand operand_;
  const bool has_ignored_;
  const int64_t ignored_;
  Kind kind_ = Kind::kConstant;
  alignas(64) C buffer_[2 * kLanes];
};

// Writes a row of C into an output of another type.
template <class C>
FL_CALLED void write(const C* values, int64_t count, DType dtype, void* out, int64_t begin) {
  switch (dtype) {
    case DType::kFloat64:
      return convert(values, 0, count, static_cast<double*>(out) + begin);
    case DType::kFloat16:
      return convert(values, 0, count, static_cast<Half*>(out) + begin);
    case DType::kBFloat16:
      return convert(values, 0, count, static_cast<BFloat16*>(out) + begin);
    default:
      return convert(values, 0, count, static_cast<float*>(out) + begin);
  }
}

// Writes a row past the caches.
template <class T>
FL_CALLED void stream(const T* values, int64_t count, T* out) {
  constexpr int64_t w = kBytes / sizeof(T);
  int64_t i = 0;
  for (; i + w <= count; i += w) stream_vector(out + i, load_unaligned<UInt32Vector>(values + i));
  memcpy(out + i, values + i, (count - i) * sizeof(T));
}

// From how many bytes on a result goes past the caches: with the two arrays that it is made from, more than most of them hold.
#ifndef FL_STREAMED
#define FL_STREAMED (16 << 20)
#endif

// A problem's elementwise result as rows of Z.
template <class Z>
class Sink {
 public:
  explicit Sink(const Problem& problem) : out_(problem.out), dtype_(problem.out_dtype) {
    // with 16-bit types memory is not what limits; a tile of a layer, which takes the logits' place, is read again
    const bool may_stream = kCanStream && !is_16bit<Z> && out_ != problem.logits.data && uintptr_t(out_) % kBytes == 0;
    if (dtype_ != kDType<Z>) {
      kind_ = Kind::kConverted;
    } else if (may_stream && problem.numel * int64_t(sizeof(Z)) >= FL_STREAMED) {
      kind_ = Kind::kStreamed;
    }
  }

  bool in_place() const { return kind_ == Kind::kInPlace; }
  // Where the elements from `begin` on are to be written, at most kLanes, before written().
  Z* row(int64_t begin) { return in_place() ? static_cast<Z*>(out_) + begin : buffer_; }
  void written(int64_t begin, int64_t count) const {
    if (kind_ == Kind::kStreamed) stream(buffer_, count, static_cast<Z*>(out_) + begin);
    if constexpr (!is_16bit<Z>) {
      if (kind_ == Kind::kConverted) write(buffer_, count, dtype_, out_, begin);
    }
  }
  // All rows are.
  void finish() const {
    if (kind_ == Kind::kStreamed) end_stream();
  }

 private:
  enum class Kind { kInPlace, kConverted, kStreamed };
  void* const out_;
  const DType dtype_;
  Kind kind_ = Kind::kInPlace;
  alignas(64) Z buffer_[kLanes];
};

}  // namespace
}  // namespace fused_logistic
