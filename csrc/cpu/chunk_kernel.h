// The body of a ChunkKernel. Each instruction set includes this file once (baseline.cpp, avx2.cpp, avx512.cpp).
#pragma once
#include "../losses.h"
#include "kernels.h"
#include "source.h"
#include "sums.h"

namespace fused_logistic {
namespace {

// Pointers to one row (at most kLanes elements): Z the type of the logits and of the output in memory, Y of the target,
// C of the arithmetic. Each kernel reads the fields that it needs.
template <class C, class Z, class Y>
struct Row {
  const Z* logits;
  const Y* target;
  Z* out;
  C* summands;    // what the row adds to the sum
  C *q, *linear;  // or, where losses are grouped, the lanes' groups
  const C* grad_output;
  C scale;
  bool more;      // whether another row follows
  bool more_out;  // and its results stand behind this one's
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
  FL_METHOD LossGroup<V> group() const { return {load_as<V>(row.q + i), load_as<V>(row.linear + i)}; }
  FL_METHOD void group(const LossGroup<V>& group) const {
    store(row.q + i, group.q);
    store(row.linear + i, group.linear);
  }
};
template <Output kOutput, class L, Terms kTerms, bool kAgain, class V, class C, class Z, class Y>
FL_FN void step(const Row<C, Z, Y>& row, int64_t i) {
  evaluate<kOutput, L, kTerms, kAgain, !kAgain && L::kHardIsLess, V>(RowAccess<kOutput, V, C, Z, Y>{row, i},
                                                                     row.settings);
}

// Asks for what the next row will read of logits, target and weight, where they lie as rows, and for where it will write: the
// hardware's own prefetching stops at each row's end, where the sums are added up. The first-level cache can wait for fewer
// lines than memory's latency asks for; with 16 bits, which are computed as slowly and half as many, for enough, a tenth faster.
template <Output kOutput, Terms kTerms, class V, class C, class Z, class Y>
FL_FN void prefetch_next_row(const Row<C, Z, Y>& row, int64_t i) {
  constexpr int64_t w = width<V>;
  if (!row.more) return;
  constexpr Prefetch kRead = is_16bit<Z> ? Prefetch::kReadNear : Prefetch::kRead;
  prefetch<kRead>(row.logits + kLanes + i, w * sizeof(Z));
  prefetch<kRead>(row.target + kLanes + i, w * sizeof(Y));
  if constexpr (has_weights(kTerms)) prefetch<kRead>(row.weight + kLanes + i, w * sizeof(C));
  if (has_elements(kOutput) && row.more_out) prefetch<Prefetch::kWrite>(row.out + kLanes + i, w * sizeof(Z));
}

// Always inlined: as a function of its own it would keep the row's fields in memory, a tenth slower.
template <Output kOutput, class L, Terms kTerms, bool kAgain, class V, class C, class Z, class Y>
FL_FN void evaluate_row(const Row<C, Z, Y>& row, int64_t count) {
  constexpr int64_t w = width<V>;
  int64_t i = 0;
  for (; i + w <= count; i += w) {
    prefetch_next_row<kOutput, kTerms, V>(row, i);
    step<kOutput, L, kTerms, kAgain, V>(row, i);
  }
  if (i == count) return;
  // The rest, padded to a whole value: the same code, elsewhere. Padding lanes are computed and dropped.
  const int64_t n = count - i;
  Z logits[w] = {}, out[w];
  Y target[w] = {};
  C operands[4][w] = {}, summands[w], q[w] = {}, linear[w] = {};
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
  rest.q = q;
  rest.linear = linear;
  constexpr bool kGrouped = is_grouped<L>(kOutput, kTerms) && !kAgain;
  if constexpr (kGrouped) {
    memcpy(q, row.q + i, n * sizeof(C));
    memcpy(linear, row.linear + i, n * sizeof(C));
  }
  step<kOutput, L, kTerms, kAgain, V>(rest, 0);
  if constexpr (has_elements(kOutput)) memcpy(row.out + i, out, n * sizeof(Z));
  if constexpr (kGrouped) {
    memcpy(row.q + i, q, n * sizeof(C));
    memcpy(row.linear + i, linear, n * sizeof(C));
  } else if constexpr (has_sum(kOutput)) {
    memcpy(row.summands + i, summands, n * sizeof(C));
  }
}

// The values' sum in the order that is fastest: of counts, which are exact in any, or NaN where any of the values is, or where
// infinities of both signs are among them.
template <class C>
FL_FN C sum_of(const C* values, int64_t count) {
  using V = typename Simd<C>::Vector;
  constexpr int64_t w = width<V>;
  V sums[8] = {};  // as many as hide an addition's latency
  C sum = 0;
  int64_t i = 0;
  for (; i + 8 * w <= count; i += 8 * w) {
    for (int64_t k = 0; k < 8; ++k) sums[k] = sums[k] + load(values + i + k * w);
  }
  for (; i < count; ++i) sum += values[i];
  for (int64_t half = 4; half >= 1; half /= 2) {
    for (int64_t k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  }
  C lanes[w];
  store(lanes, sums[0]);
  for (int64_t k = 0; k < w; ++k) sum += lanes[k];
  return sum;
}

// Whether all targets are 0 or 1, or left out: where L::kHardIsLess, other rows are for evaluate_row_again.
template <class C, class Z>
FL_FN bool has_hard_targets(const Row<C, Z, C>& row, int64_t count) {
  using V = typename Simd<C>::Vector;
  constexpr int64_t w = width<V>;
  if (row.settings.smoothing != 0) return false;
  const bool has_missing = row.settings.ignore_nan;
  const auto soft = [&](auto y) {
    using U = decltype(y);
    const auto found = (y != splat<U>(0)) & (y != splat<U>(1)) & (y != splat<U>(row.settings.ignore_index));
    return has_missing ? found & (y == y) : found;
  };
  auto found = soft(V{});
  int64_t i = 0;
  for (; i + w <= count; i += w) found = found | soft(load(row.target + i));
  bool any = Value<V>::any(found);
  for (; i < count; ++i) any = any | soft(row.target[i]);
  return !any;
}

// A function, and given a copy of the row, which would be kept in memory for its sake.
template <Output kOutput, class L, Terms kTerms, class C, class Z, class Y>
FL_CALLED void evaluate_row_again(const Row<C, Z, Y> row, int64_t count) {
  evaluate_row<kOutput, L, kTerms, /*kAgain=*/true, typename Simd<C>::Vector>(row, count);
}

// Each element by itself. Always inlined, like evaluate_row.
template <Output kOutput, class L, Terms kTerms, class V, class C, class Z, class Y>
FL_FN void run_row(const Row<C, Z, Y>& row, int64_t count) {
  if constexpr (L::kHardIsLess) {
    if (!has_hard_targets(row, count)) return evaluate_row_again<kOutput, L, kTerms>(row, count);
  }
  if constexpr (!has_weights(kTerms)) {
    evaluate_row<kOutput, L, kTerms, is_grouped<L>(kOutput, kTerms), V>(row, count);
  } else {
    const C* logits = row.logits;
    alignas(64) C copy[kLanes];
    if (has_elements(kOutput) && row.out == logits) {  // a tile of a layer
      memcpy(copy, logits, count * sizeof(C));
      logits = copy;
    }
    evaluate_row<kOutput, L, kTerms, false, V>(row, count);
    const C sum = sum_of(has_elements(kOutput) ? row.out : row.summands, count);
    if (sum == sum) return;
    Row<C, C, C> again = row;
    again.logits = logits;
    evaluate_row_again<kOutput, L, kTerms>(again, count);
  }
}

// How many vectors go through the formula side by side: fewer where those of bf16's conversion need registers too, a twelfth
// less time with AVX-512, and more again where weights make the chains longer.
template <Terms kTerms, class C, class Z>
using ValueOf = std::conditional_t<std::is_same_v<Z, BFloat16> && !has_weights(kTerms), typename Simd<C>::ValueOfFew,
                                   typename Simd<C>::Value>;

template <Output kOutput, class L, Terms kTerms, class C, class Z, class Y>
void run_chunks(const Problem& problem, int64_t first, int64_t last, double* partials) {
  // Where Z (or Y) is C, its operand may be of any type and broadcast; where it is a 16-bit type it is read in place.
  Source<C> target(problem.target, problem.numel, C(0), problem.options), logits(problem.logits, problem.numel, C(0));
  Source<C> grad_output(problem.grad_output, problem.numel, C(1));
  Source<C> pos_weight(problem.pos_weight, has_weights(kTerms) ? problem.numel : 0, C(1));
  Source<C> weight(problem.weight, has_weights(kTerms) ? problem.numel : 0, C(1));
  Source<C> mask(problem.mask, has_options(kTerms) ? problem.numel : 0, C(1));
  alignas(64) double lanes[kLanes];
  alignas(64) C summands[kLanes];
  constexpr bool kGrouped = is_grouped<L>(kOutput, kTerms);
  alignas(64) C q[kGrouped ? kLanes : 1], linear[kGrouped ? kLanes : 1];
  Row<C, Z, Y> row = {};
  row.summands = summands;
  row.q = q;
  row.linear = linear;
  row.scale = C(problem.scale);
  if (kOutput == Output::kLossSumAndGrad && first < last) row.scale = row.scale * grad_output.row(0, 1)[0];
  if constexpr (kTerms != Terms::kPlain || !std::is_same_v<L, Bce>) row.settings = settings_of<C>(problem);
  // A sum tells for nothing of infinite weights and logits, and of groups that overflow: where it is not finite, the chunk is
  // done again.
  constexpr bool kCounts = kOutput == Output::kCount, kAsked = has_sum(kOutput) && !kCounts;
  const bool in_place = has_elements(kOutput) && problem.out == problem.logits.data;  // a tile of a layer
  Sink<Z> out(problem);
  row.more_out = out.in_place();
  alignas(64) Z saved[kAsked ? kChunk : 1];
  bool again = false;

  for (int64_t chunk = first; chunk < last; ++chunk) {
    const int64_t chunk_begin = chunk * kChunk;
    const int64_t chunk_end = chunk_begin + kChunk < problem.numel ? chunk_begin + kChunk : problem.numel;
    const int64_t filled = chunk_end - chunk_begin < kLanes ? chunk_end - chunk_begin : kLanes;
    const bool one_by_one = again || (kGrouped && chunk_end - chunk_begin == 1);
    if constexpr (kGrouped) {
      memset(q, 0, sizeof(q));
      memset(linear, 0, sizeof(linear));
    }
    for (int64_t begin = chunk_begin; begin < chunk_end; begin += kLanes) {
      const int64_t count = chunk_end - begin < kLanes ? chunk_end - begin : kLanes;
      if constexpr (!is_16bit<Z>) {
        row.logits = logits.row(begin, count);
      } else {
        row.logits = static_cast<const Z*>(problem.logits.data) + begin;
      }
      if constexpr (has_elements(kOutput)) row.out = out.row(begin);
      if constexpr (!is_16bit<Y>) {
        row.target = target.row(begin, count);
      } else {
        row.target = static_cast<const Y*>(problem.target.data) + begin;
      }
      if constexpr (takes_grad_output(kOutput)) row.grad_output = grad_output.row(begin, count);
      if constexpr (has_weights(kTerms)) {
        row.pos_weight = pos_weight.row(begin, count);
        row.weight = weight.row(begin, count);
      }
      if constexpr (has_options(kTerms)) row.mask = mask.row(begin, count);
      row.more = begin + count < problem.numel;
      if constexpr (kAsked) {
        Z* const kept = saved + (begin - chunk_begin);
        if (again && in_place) row.logits = kept;
        if (!again && in_place) memcpy(kept, row.logits, count * sizeof(Z));
        bool careful = one_by_one;
        if constexpr (L::kHardIsLess) careful = careful || !has_hard_targets(row, count);
        if (careful) {
          evaluate_row_again<kOutput, L, kTerms>(row, count);
        } else {
          evaluate_row<kOutput, L, kTerms, false, ValueOf<kTerms, C, Z>>(row, count);
        }
      } else {
        run_row<kOutput, L, kTerms, ValueOf<kTerms, C, Z>>(row, count);
      }
      if constexpr (kCounts) {
        partials[chunk] = sum_of(summands, count) + (begin == chunk_begin ? 0 : partials[chunk]);
      } else if (has_sum(kOutput) && (!kGrouped || one_by_one)) {
        if (begin == chunk_begin) {
          for (int64_t i = 0; i < count; ++i) lanes[i] = double(summands[i]) + 0.0;  // + 0.0: never -0.0
        } else {
          for (int64_t i = 0; i < count; ++i) lanes[i] += double(summands[i]);
        }
      }
      if constexpr (has_elements(kOutput)) out.written(begin, count);
    }
    if constexpr (kAsked) {
      partials[chunk] = kGrouped && !one_by_one ? sum_of_groups(q, linear, filled) : fold(lanes, filled);
      again = !one_by_one && !(partials[chunk] - partials[chunk] == 0);
      if (again) --chunk;
    }
  }
  out.finish();
}

// Picks the storage types that are worth a kernel of their own: fp32, fp64, and the 16-bit types in place, where no gradient but
// the logits' is made: with options or weights in training alone. All other combinations are converted row by row, to the
// same bits, and so are these where fma is a call, beside which converting takes no time.
template <Output kOutput, class L, Terms kTerms>
void run_types(const Problem& problem, int64_t first, int64_t last, double* partials) {
  if constexpr (!L::kWhole) {
    if (problem.compute_double) {  // rare: fewer kernels
      constexpr bool kOwn = kTerms == Terms::kOptions || (kTerms == Terms::kPlain && std::is_same_v<L, Bce>);
      constexpr Terms terms = kOwn ? kTerms : Terms::kAll;
      return run_chunks<kOutput, L, terms, double, double, double>(problem, first, last, partials);
    }
  }
  if constexpr (std::is_same_v<L, Bce> && kHasFma &&
                (kOutput == Output::kLossSumAndGrad || (kTerms == Terms::kPlain && has_plain_kernels(kOutput)))) {
    const bool in_place =
        is_full(problem.logits, problem.numel) && (!has_elements(kOutput) || problem.out_dtype == problem.logits.dtype);
    const auto run_in_place = [&]<class Z>(Z) {
      if (!in_place || problem.logits.dtype != kDType<Z>) return false;
      if (is_full(problem.target, problem.numel) && problem.target.dtype == kDType<Z>) {
        run_chunks<kOutput, L, kTerms, float, Z, Z>(problem, first, last, partials);
        return true;
      }
      if constexpr (kTerms == Terms::kPlain) {
        run_chunks<kOutput, L, kTerms, float, Z, float>(problem, first, last, partials);
        return true;
      }
      return false;
    };
    if (run_in_place(Half{}) || run_in_place(BFloat16{})) return;
  }
  run_chunks<kOutput, L, kTerms, float, float, float>(problem, first, last, partials);
}

template <Output kOutput>
void run_output(const Problem& problem, int64_t first, int64_t last, double* partials) {
  const Terms terms = terms_of(problem, kOutput);
  const auto run_first = [&]<class L, Terms... kTerms>(L) {  // that computes all that is asked for
    (void)((terms <= kTerms && (run_types<kOutput, L, kTerms>(problem, first, last, partials), true)) || ...);
  };
  if constexpr (kOutput == Output::kCount) {
    run_first.template operator()<Bce, Terms::kOptions>({});
  } else {
    with_loss<has_plain_kernels(kOutput)>(problem, [&]<class L>(L loss) {
      if constexpr (!has_plain_kernels(kOutput) || (!std::is_same_v<L, Bce> && !L::kWhole)) {
        run_first.template operator()<L, Terms::kAll>(loss);
      } else if constexpr (L::kWhole) {
        run_first.template operator()<L, Terms::kPlain, Terms::kAll>(loss);
      } else {
        run_first.template operator()<L, Terms::kPlain, Terms::kOptions, Terms::kWeights, Terms::kAll>(loss);
      }
    });
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
