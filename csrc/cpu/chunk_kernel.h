// The body of a ChunkKernel. Each instruction set includes this file once (baseline.cpp, avx2.cpp, avx512.cpp).
#pragma once
#include "kernels.h"
#include "source.h"

namespace fused_logistic {
namespace {

// The formulas that are worth a kernel of their own: p = w = 1 and all elements kept; every option; the focal loss.
enum class Form { kPlain, kGeneral, kFocal };

// Pointers to one row (at most kLanes elements): Z the type of the logits and of the output in memory, Y of the target,
// C of the arithmetic. In the plain case (no weight, pos_weight, mask, smoothing, ignored target) the fields from
// pos_weight on are not read.
template <class C, class Z, class Y>
struct Row {
  const Z* logits;
  const Y* target;
  Z* out;
  C* summands;  // what the row adds to the sum
  const C* grad_output;
  C scale;
  const C *pos_weight, *weight, *mask;
  C smoothing;
  C ignore_index;  // NaN where no target is ignored
  bool more;       // whether another row follows
  FocalConstants<C> focal;
};

template <Output kOutput, class V>
FL_FN V derivative(const Logit<V>& logit, const TermWeights<V>& weights, V y, V p, V w, V factor, V unsmoothed) {
  if constexpr (kOutput == Output::kGradTarget) return grad_target(logit, p, w) * unsmoothed * factor;
  if constexpr (kOutput == Output::kGradWeight) return loss(logit, weights) * factor;
  if constexpr (kOutput == Output::kGradPosWeight) return grad_pos_weight(logit, y, w) * factor;
  return grad_logit(logit, weights, factor);
}
template <Output kOutput, class V, class C>
FL_FN V focal_derivative(const Logit<V>& logit, const TermWeights<V>& weights, const Focal<V>& focal, V y, V p, V w,
                         V factor, V unsmoothed, const FocalConstants<C>& constants) {
  if constexpr (kOutput == Output::kGradTarget)
    return focal_grad_target(logit, focal, y, p, w, constants) * unsmoothed * factor;
  if constexpr (kOutput == Output::kGradWeight) return focal_loss(logit, weights, focal) * factor;
  if constexpr (kOutput == Output::kGradPosWeight)
    return add_term(focal.power, grad_pos_weight(logit, y, w * focal_alpha(y, constants)), splat<V>(0)) * factor;
  return focal_grad_logit(logit, weights, focal, y, splat<V>(constants.gamma), factor);
}

// One value of elements, i being the first.
template <Output kOutput, Form kForm, class V, class C, class Z, class Y>
FL_FN void step(const Row<C, Z, Y>& row, int64_t i) {
  V y = load_as<V>(row.target + i), p = splat<V>(1), w = p;
  TermWeights<V> weights;
  auto kept = w == w;
  if constexpr (kForm == Form::kPlain) {
    weights = term_weights(y);
  } else {
    p = load_as<V>(row.pos_weight + i);
    if constexpr (kOutput != Output::kGradWeight) w = load_as<V>(row.weight + i);
    kept = (y != splat<V>(row.ignore_index)) & (load_as<V>(row.mask + i) != splat<V>(0));
    y = smooth(y, row.smoothing);
    if constexpr (kForm == Form::kFocal) y = focal_target(y);
    weights = term_weights(y, p, kForm == Form::kFocal ? w * focal_alpha(y, row.focal) : w);
  }
  if constexpr (kOutput == Output::kCount) {
    store(row.summands + i, select(kept, splat<V>(1), splat<V>(0)));
    return;
  }
  const Logit<V> parts = logit(load_as<V>(row.logits + i));
  Focal<V> factors;
  if constexpr (kForm == Form::kFocal) factors = focal(parts, y, row.focal);
  if constexpr (has_sum(kOutput) || kOutput == Output::kLoss) {
    V value;
    if constexpr (kForm == Form::kFocal) {
      value = focal_loss(parts, weights, factors);
    } else {
      value = loss(parts, weights);
    }
    if constexpr (kForm != Form::kPlain) value = select(kept, value, splat<V>(0));
    if constexpr (kOutput == Output::kLoss) store(row.out + i, value);
    if constexpr (has_sum(kOutput)) store(row.summands + i, value);
  }
  if constexpr (has_elements(kOutput) && kOutput != Output::kLoss) {
    V factor = splat<V>(row.scale);
    if constexpr (kOutput != Output::kLossSumAndGrad) factor = factor * load_as<V>(row.grad_output + i);
    const V unsmoothed = splat<V>(1 - row.smoothing);
    V value;
    if constexpr (kForm == Form::kFocal) {
      value = focal_derivative<kOutput>(parts, weights, factors, y, p, w, factor, unsmoothed, row.focal);
    } else {
      value = derivative<kOutput>(parts, weights, y, p, w, factor, unsmoothed);
    }
    if constexpr (kForm != Form::kPlain) value = select(kept, value, splat<V>(0));
    store(row.out + i, value);
  }
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
template <Output kOutput, Form kForm, class V, class C, class Z, class Y>
FL_FN void run_row(const Row<C, Z, Y>& row, int64_t count) {
  constexpr int64_t w = width<V>;
  int64_t i = 0;
  for (; i + w <= count; i += w) {
    prefetch_next_row<kOutput, V>(row, i);
    step<kOutput, kForm, V>(row, i);
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
  step<kOutput, kForm, V>(rest, 0);
  if constexpr (has_elements(kOutput)) memcpy(row.out + i, out, n * sizeof(Z));
  if constexpr (has_sum(kOutput)) {
    memcpy(row.summands + i, summands, n * sizeof(C));
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
FL_FN double fold(double* lanes, int64_t count) {
  for (int64_t half = kLanes / 2; half >= 1; half /= 2) {
    for (int64_t i = 0; i + half < count && i < half; ++i) lanes[i] += lanes[i + half];
    if (count > half) count = half;
  }
  return lanes[0];
}

template <class T>
constexpr bool is_arithmetic = dtype_of<T> == DType::kFloat32 || dtype_of<T> == DType::kFloat64;

template <Output kOutput, Form kForm, class C, class Z, class Y>
void run_chunks(const Problem& problem, int64_t first, int64_t last, double* partials) {
  // Where Z (or Y) is C, its operand may be of any type and broadcast; where it is a 16-bit type it is read in place.
  Source<C> target(problem.target, problem.numel, C(0)), logits(problem.logits, problem.numel, C(0));
  Source<C> grad_output(problem.grad_output, problem.numel, C(1));
  constexpr bool kPlain = kForm == Form::kPlain;
  Source<C> pos_weight(kPlain ? Operand() : problem.pos_weight, kPlain ? 0 : problem.numel, C(1));
  Source<C> weight(kPlain ? Operand() : problem.weight, kPlain ? 0 : problem.numel, C(1));
  Source<C> mask(kPlain ? Operand() : problem.mask, kPlain ? 0 : problem.numel, C(1));
  const bool converted = has_elements(kOutput) && problem.out_dtype != dtype_of<Z>;
  alignas(64) double lanes[kLanes];
  alignas(64) C summands[kLanes], converted_out[kLanes];
  Row<C, Z, Y> row = {};
  row.summands = summands;
  row.scale = C(problem.scale);
  row.smoothing = C(problem.label_smoothing);
  row.ignore_index = problem.has_ignore_index ? C(problem.ignore_index) : C(__builtin_nan(""));
  if constexpr (kForm == Form::kFocal)
    row.focal = focal_constants<C>(problem.gamma, problem.alpha, problem.alpha_opposite);

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
      if constexpr (kOutput >= Output::kGradLogits) row.grad_output = grad_output.row(begin, count);
      if constexpr (!kPlain) {
        row.pos_weight = pos_weight.row(begin, count);
        row.weight = weight.row(begin, count);
        row.mask = mask.row(begin, count);
      }
      row.more = begin + count < problem.numel;
      run_row<kOutput, kForm, typename Simd<C>::Value>(row, count);
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
  }
}

// Picks the storage types that are worth a kernel of their own: fp32, fp64, and the 16-bit types in place. All other
// combinations are converted row by row.
template <Output kOutput, Form kForm>
void run_types(const Problem& problem, int64_t first, int64_t last, double* partials) {
  const auto in_place = [&](DType dtype) {
    return !problem.compute_double && problem.logits.dtype == dtype && is_full(problem.logits, problem.numel) &&
           (!has_elements(kOutput) || problem.out_dtype == dtype);
  };
  if (problem.compute_double) return run_chunks<kOutput, kForm, double, double, double>(problem, first, last, partials);
  if constexpr (kForm == Form::kPlain) {
    const DType target = is_full(problem.target, problem.numel) ? problem.target.dtype : DType::kFloat32;
    if (in_place(DType::kFloat16)) {
      return target == DType::kFloat16
                 ? run_chunks<kOutput, Form::kPlain, float, Half, Half>(problem, first, last, partials)
                 : run_chunks<kOutput, Form::kPlain, float, Half, float>(problem, first, last, partials);
    }
    if (in_place(DType::kBFloat16)) {
      return target == DType::kBFloat16
                 ? run_chunks<kOutput, Form::kPlain, float, BFloat16, BFloat16>(problem, first, last, partials)
                 : run_chunks<kOutput, Form::kPlain, float, BFloat16, float>(problem, first, last, partials);
    }
  }
  run_chunks<kOutput, kForm, float, float, float>(problem, first, last, partials);
}

template <Output kOutput>
void run_output(const Problem& problem, int64_t first, int64_t last, double* partials) {
  // The rarer outputs have the general kernel only.
  if constexpr (kOutput <= Output::kLoss || kOutput == Output::kGradLogits) {
    if (is_plain(problem)) return run_types<kOutput, Form::kPlain>(problem, first, last, partials);
  }
  if constexpr (kOutput != Output::kCount) {
    if (problem.focal) return run_types<kOutput, Form::kFocal>(problem, first, last, partials);
  }
  run_types<kOutput, Form::kGeneral>(problem, first, last, partials);
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
