// The body of a ChunkKernel. Each instruction set includes this file once (baseline.cpp, avx2.cpp, avx512.cpp).
#pragma once
#include "../losses.h"
#include "kernels.h"
#include "source.h"

namespace fused_logistic {
namespace {

// Pointers to one row (at most kLanes elements): Z the type of the logits and of the output in memory, Y of the target,
// C of the arithmetic. Plain kernels do not read the fields from pos_weight on.
template <class C, class Z, class Y>
struct Row {
  const Z* logits;
  const Y* target;
  Z* out;
  C* summands;  // what the row adds to the sum
  const C* grad_output;
  C scale;
  bool more;  // whether another row follows
  const C *pos_weight, *weight, *mask;
  Settings<C> settings;
};

// One value of a row's elements, i being the first, as evaluate asks for them.
template <Output kOutput, class V, class C, class Z, class Y>
struct RowAccess {
  const Row<C, Z, Y>& row;
  const int64_t i;
  FL_METHOD V z() const { return load_as<V>(row.logits + i); }
  FL_METHOD V y() const { return load_as<V>(row.target + i); }
  FL_METHOD V p() const { return load_as<V>(row.pos_weight + i); }
  FL_METHOD V w() const { return load_as<V>(row.weight + i); }
  FL_METHOD V mask() const { return load_as<V>(row.mask + i); }
  FL_METHOD V factor() const {
    const V scale = splat<V>(row.scale);
    return takes_grad_output(kOutput) ? scale * load_as<V>(row.grad_output + i) : scale;
  }
  FL_METHOD void out(V value) const { store(row.out + i, value); }
  FL_METHOD void term(V value) const { store(row.summands + i, value); }
};
template <Output kOutput, class L, bool kPlain, bool kInfinite, class V, class C, class Z, class Y>
FL_FN void step(const Row<C, Z, Y>& row, int64_t i) {
  evaluate<kOutput, L, kInfinite, V>(RowAccess<kOutput, V, C, Z, Y>{row, i}, row.settings, kPlain);
}

// Asks for the lines that the next row will read and write: the hardware's own prefetching stops at each row's end,
// where the sums are added up.
template <Output kOutput, class V, class C, class Z, class Y>
FL_FN void prefetch_next_row(const Row<C, Z, Y>& row, int64_t i) {
  constexpr int64_t w = width<V>, line = 64;
  if (!row.more) return;
  for (int64_t k = 0; k < w; k += line / int64_t(sizeof(Z))) {
    __builtin_prefetch(row.logits + kLanes + i + k);
    if constexpr (has_elements(kOutput)) __builtin_prefetch(row.out + kLanes + i + k, 1);
  }
  for (int64_t k = 0; k < w; k += line / int64_t(sizeof(Y))) __builtin_prefetch(row.target + kLanes + i + k);
}

// Always inlined: as a function of its own it would keep the row's fields in memory, a tenth slower.
template <Output kOutput, class L, bool kPlain, bool kInfinite, class V, class C, class Z, class Y>
FL_FN void evaluate_row(const Row<C, Z, Y>& row, int64_t count) {
  constexpr int64_t w = width<V>;
  int64_t i = 0;
  for (; i + w <= count; i += w) {
    prefetch_next_row<kOutput, V>(row, i);
    step<kOutput, L, kPlain, kInfinite, V>(row, i);
  }
  if (i == count) return;
  // The rest, padded to a whole value: the same code, elsewhere. Padding lanes are computed and dropped.
  const int64_t n = count - i;
  Z logits[w] = {}, out[w];
  Y target[w] = {};
  C operands[4][w] = {}, summands[w];
  memcpy(logits, row.logits + i, n * sizeof(Z));
  memcpy(target, row.target + i, n * sizeof(Y));
  Row<C, Z, Y> rest = row;
  const C** const fields[] = {&rest.grad_output, &rest.pos_weight, &rest.weight, &rest.mask};
  for (int k = 0; k < 4; ++k) {
    if (*fields[k] == nullptr) continue;
    memcpy(operands[k], *fields[k] + i, n * sizeof(C));
    *fields[k] = operands[k];
  }
  rest.logits = logits;
  rest.target = target;
  rest.out = out;
  rest.summands = summands;
  step<kOutput, L, kPlain, kInfinite, V>(rest, 0);
  if constexpr (has_elements(kOutput)) memcpy(row.out + i, out, n * sizeof(Z));
  if constexpr (has_sum(kOutput)) {
    memcpy(row.summands + i, summands, n * sizeof(C));
  }
}

// Whether any is NaN, or infinities of both signs are among them.
template <class C>
FL_FN bool has_nan(const C* values, int64_t count) {
  using V = typename Simd<C>::Vector;
  constexpr int64_t w = width<V>;
  V sums[8] = {};  // as many as hide an addition's latency
  C rest = 0;
  int64_t i = 0;
  for (; i + 8 * w <= count; i += 8 * w) {
    for (int64_t k = 0; k < 8; ++k) sums[k] = sums[k] + load(values + i + k * w);
  }
  for (; i < count; ++i) rest += values[i];
  for (int64_t half = 4; half >= 1; half /= 2) {
    for (int64_t k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  }
  const V sum = sums[0] + splat<V>(rest);
  return Value<V>::any(sum != sum);
}

// A function, and given a copy of the row, which would be kept in memory for its sake.
template <Output kOutput, class L, class C>
FL_CALLED void evaluate_row_again(const Row<C, C, C> row, int64_t count) {
  evaluate_row<kOutput, L, /*kPlain=*/false, /*kInfinite=*/true, typename Simd<C>::Vector>(row, count);
}

// Always inlined, like evaluate_row.
template <Output kOutput, class L, bool kPlain, class V, class C, class Z, class Y>
FL_FN void run_row(const Row<C, Z, Y>& row, int64_t count) {
  if constexpr (kPlain || kOutput == Output::kCount) {
    evaluate_row<kOutput, L, kPlain, false, V>(row, count);
  } else {
    const C* logits = row.logits;
    alignas(64) C copy[kLanes];
    if (has_elements(kOutput) && row.out == logits) {  // a tile of a layer
      memcpy(copy, logits, count * sizeof(C));
      logits = copy;
    }
    evaluate_row<kOutput, L, kPlain, false, V>(row, count);
    if (!has_nan(has_elements(kOutput) ? row.out : row.summands, count)) return;
    Row<C, C, C> again = row;
    again.logits = logits;
    evaluate_row_again<kOutput, L>(again, count);
  }
}

// Writes a row of C into an output of another type.
template <class C>
void write(const C* values, int64_t count, DType dtype, void* out, int64_t begin) {
  constexpr int64_t w = kBytes / 4;
  for (int64_t i = 0; i < count; i += w) {
    const int64_t n = count - i < w ? count - i : w;
    float padded[w] = {};
    for (int64_t k = 0; k < n; ++k) padded[k] = float(values[i + k]);
    if (dtype == DType::kFloat64) {
      for (int64_t k = 0; k < n; ++k) static_cast<double*>(out)[begin + i + k] = double(values[i + k]);
    } else if (dtype == DType::kFloat32) {
      memcpy(static_cast<float*>(out) + begin + i, padded, n * sizeof(float));
    } else if (dtype == DType::kFloat16) {
      Half half[w];
      store(half, load(padded));
      memcpy(static_cast<Half*>(out) + begin + i, half, n * sizeof(Half));
    } else {
      BFloat16 half[w];
      store(half, load(padded));
      memcpy(static_cast<BFloat16*>(out) + begin + i, half, n * sizeof(BFloat16));
    }
  }
}

// lanes[0] = the sum of the lanes, folded in halves; lanes from count on are zero and not looked at.
FL_CALLED double fold(double* lanes, int64_t count) {
  for (int64_t half = kLanes / 2; half >= 1; half /= 2) {
    for (int64_t i = 0; i + half < count && i < half; ++i) lanes[i] += lanes[i + half];
    if (count > half) count = half;
  }
  return lanes[0];
}

template <class T>
constexpr bool is_arithmetic = dtype_of<T> == DType::kFloat32 || dtype_of<T> == DType::kFloat64;

template <Output kOutput, class L, bool kPlain, class C, class Z, class Y>
void run_chunks(const Problem& problem, int64_t first, int64_t last, double* partials) {
  // Where Z (or Y) is C, its operand may be of any type and broadcast; where it is a 16-bit type it is read in place.
  Source<C> target(problem.target, problem.numel, C(0)), logits(problem.logits, problem.numel, C(0));
  Source<C> grad_output(problem.grad_output, problem.numel, C(1));
  Source<C> pos_weight(kPlain ? Operand() : problem.pos_weight, kPlain ? 0 : problem.numel, C(1));
  Source<C> weight(kPlain ? Operand() : problem.weight, kPlain ? 0 : problem.numel, C(1));
  Source<C> mask(kPlain ? Operand() : problem.mask, kPlain ? 0 : problem.numel, C(1));
  const bool converted = has_elements(kOutput) && problem.out_dtype != dtype_of<Z>;
  alignas(64) double lanes[kLanes];
  alignas(64) C summands[kLanes], converted_out[kLanes];
  Row<C, Z, Y> row = {};
  row.summands = summands;
  row.scale = C(problem.scale);
  if constexpr (!kPlain) row.settings = settings_of<C>(problem.options);
  // What is summed tells of infinite weights for nothing: a chunk whose sum is not finite is done again.
  constexpr bool kAsked = has_sum(kOutput) && kOutput != Output::kCount && !kPlain;
  const bool in_place = has_elements(kOutput) && problem.out == problem.logits.data;  // a tile of a layer
  alignas(64) C saved[kAsked ? kChunk : 1];
  bool again = false;

  for (int64_t chunk = first; chunk < last; ++chunk) {
    const int64_t chunk_begin = chunk * kChunk;
    const int64_t chunk_end = chunk_begin + kChunk < problem.numel ? chunk_begin + kChunk : problem.numel;
    const int64_t filled = chunk_end - chunk_begin < kLanes ? chunk_end - chunk_begin : kLanes;
    for (int64_t begin = chunk_begin; begin < chunk_end; begin += kLanes) {
      const int64_t count = chunk_end - begin < kLanes ? chunk_end - begin : kLanes;
      if constexpr (is_arithmetic<Z>) {
        row.logits = logits.row(begin, count);
        row.out = converted ? converted_out : static_cast<Z*>(problem.out) + begin;
      } else {
        row.logits = static_cast<const Z*>(problem.logits.data) + begin;
        row.out = static_cast<Z*>(problem.out) + begin;
      }
      if constexpr (is_arithmetic<Y>) {
        row.target = target.row(begin, count);
      } else {
        row.target = static_cast<const Y*>(problem.target.data) + begin;
      }
      if constexpr (takes_grad_output(kOutput)) row.grad_output = grad_output.row(begin, count);
      if constexpr (!kPlain) {
        row.pos_weight = pos_weight.row(begin, count);
        row.weight = weight.row(begin, count);
        row.mask = mask.row(begin, count);
      }
      row.more = begin + count < problem.numel;
      if constexpr (kAsked) {
        C* const kept = saved + (begin - chunk_begin);
        if (again && in_place) row.logits = kept;
        if (!again && in_place) memcpy(kept, row.logits, count * sizeof(C));
        if (again) {
          evaluate_row_again<kOutput, L>(Row<C, C, C>(row), count);
        } else {
          evaluate_row<kOutput, L, kPlain, false, typename Simd<C>::Value>(row, count);
        }
      } else {
        run_row<kOutput, L, kPlain, typename Simd<C>::Value>(row, count);
      }
      if constexpr (has_sum(kOutput)) {
        if (begin == chunk_begin) {
          for (int64_t i = 0; i < count; ++i) lanes[i] = double(summands[i]) + 0.0;  // + 0.0: never -0.0
        } else {
          for (int64_t i = 0; i < count; ++i) lanes[i] += double(summands[i]);
        }
      }
      if constexpr (is_arithmetic<Z>) {
        if (converted) write(converted_out, count, problem.out_dtype, problem.out, begin);
      }
    }
    if constexpr (has_sum(kOutput)) partials[chunk] = fold(lanes, filled);
    if constexpr (kAsked) {
      again = !again && !(partials[chunk] - partials[chunk] == 0);
      if (again) --chunk;
    }
  }
}

// Picks the storage types that are worth a kernel of their own: fp32, fp64, and the 16-bit types in place. All other
// combinations are converted row by row, and so are these where fma is a call, beside which converting takes no time.
template <Output kOutput, class L, bool kPlain>
void run_types(const Problem& problem, int64_t first, int64_t last, double* partials) {
  const auto in_place = [&](DType dtype) {
    return !problem.compute_double && problem.logits.dtype == dtype && is_full(problem.logits, problem.numel) &&
           (!has_elements(kOutput) || problem.out_dtype == dtype);
  };
  if (problem.compute_double)
    return run_chunks<kOutput, L, kPlain, double, double, double>(problem, first, last, partials);
  if constexpr (kPlain && kHasFma) {
    const DType target = is_full(problem.target, problem.numel) ? problem.target.dtype : DType::kFloat32;
    if (in_place(DType::kFloat16)) {
      return target == DType::kFloat16
                 ? run_chunks<kOutput, L, kPlain, float, Half, Half>(problem, first, last, partials)
                 : run_chunks<kOutput, L, kPlain, float, Half, float>(problem, first, last, partials);
    }
    if (in_place(DType::kBFloat16)) {
      return target == DType::kBFloat16
                 ? run_chunks<kOutput, L, kPlain, float, BFloat16, BFloat16>(problem, first, last, partials)
                 : run_chunks<kOutput, L, kPlain, float, BFloat16, float>(problem, first, last, partials);
    }
  }
  run_chunks<kOutput, L, kPlain, float, float, float>(problem, first, last, partials);
}

template <Output kOutput>
void run_output(const Problem& problem, int64_t first, int64_t last, double* partials) {
  if constexpr (has_plain_kernels(kOutput)) {
    if (is_plain(problem, kOutput)) return run_types<kOutput, Bce, true>(problem, first, last, partials);
  }
  if constexpr (kOutput == Output::kCount) {  // the same for every loss
    run_types<kOutput, Bce, false>(problem, first, last, partials);
  } else {
    with_loss(problem.options.loss,
              [&](auto loss) { run_types<kOutput, decltype(loss), false>(problem, first, last, partials); });
  }
}

void run(const Problem& problem, int64_t first, int64_t last, Output output, double* partials) {
  switch (output) {
    case Output::kLossSum:
      return run_output<Output::kLossSum>(problem, first, last, partials);
    case Output::kLossSumAndGrad:
      return run_output<Output::kLossSumAndGrad>(problem, first, last, partials);
    case Output::kLoss:
      return run_output<Output::kLoss>(problem, first, last, partials);
    case Output::kCount:
      return run_output<Output::kCount>(problem, first, last, partials);
    case Output::kGradLogits:
      return run_output<Output::kGradLogits>(problem, first, last, partials);
    case Output::kGradTarget:
      return run_output<Output::kGradTarget>(problem, first, last, partials);
    case Output::kGradWeight:
      return run_output<Output::kGradWeight>(problem, first, last, partials);
    case Output::kGradPosWeight:
      return run_output<Output::kGradPosWeight>(problem, first, last, partials);
  }
}

}  // namespace
}  // namespace fused_logistic
