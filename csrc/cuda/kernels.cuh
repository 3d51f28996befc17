// The CUDA kernels: pointers and sizes in, no torch. They give the bits of the CPU kernels, sums included: the elements
// by losses.h, the sums in the order that problem.h fixes. A block takes one chunk at a time; its thread t owns the
// lanes t N .. t N + N - 1 and adds up its part of each row in registers. N: per_thread in plan.h.
#pragma once
#include "../losses.h"
#include "access.cuh"
#include "kernels.h"

namespace fused_logistic {

// ---- Sums --------------------------------------------------------------------------------------------------------

// The sum of what a block's threads have, kCount values each, neighbours first; right in thread 0.
template <int kThreads, int kCount>
FL_DEVICE double fold(double (&values)[kCount]) {
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ double shared[kWarpSize];
  const int t = int(threadIdx.x);
#pragma unroll
  for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
    for (int k = 0; k < kCount; k += 2 * step) values[k] += values[k + step];
  }
  double sum = values[0];
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) sum += from_later_thread(sum, step);
  __syncthreads();  // the last fold has read what this one overwrites
  if (t % kWarpSize == 0) shared[t / kWarpSize] = sum;
  __syncthreads();
  if (t < kWarpSize) {
    sum = t < kWarps ? shared[t] : 0;
#pragma unroll
    for (int step = 1; step < kWarps; step *= 2) sum += from_later_thread(sum, step);
  }
  return sum;
}

// x of thread 0, to all of a block. A fold lies between two calls, so that none overwrites what another still reads.
FL_DEVICE double from_first_thread(double x) {
  __shared__ double shared;
  if (threadIdx.x == 0) shared = x;
  __syncthreads();
  return shared;
}

// A thread's part of a chunk's sum: of N lanes the groups of their losses or, one by one, what is added in fp64.
template <class C, int N, bool kGrouped>
struct Sums {
  double lanes[N] = {};
  __device__ __forceinline__ double folded() { return fold<int(kLanes) / N>(lanes); }
};
template <class C, int N>
struct Sums<C, N, true> {
  LossGroup<C> lanes[N] = {};
  __device__ __forceinline__ double folded() {
    double sums[N / kJoined];
#pragma unroll
    for (int k = 0; k < N; k += kJoined) {
      sums[k / kJoined] = double(loss(joined(joined(lanes[k], lanes[k + 1]), joined(lanes[k + 2], lanes[k + 3]))));
    }
    return fold<int(kLanes) / N>(sums);
  }
};

// Of one thread only: the result in its type.
FL_DEVICE void write_result(const Launch& launch, double sum) {
  const double value = sum / (launch.count != nullptr ? *launch.count : launch.divisor);
  with_floating_type(launch.result_dtype, launch.result,
                     [&](auto* out) { store(out, 1, reinterpret_cast<const double (&)[1]>(value)); });
}
FL_DEVICE void write_sum(const Launch& launch, int64_t chunk, double sum) {
  if (chunks(launch.problem.numel) == 1) return write_result(launch, sum);
  launch.partials[chunk] = sum;
}

// The second stage: one block of kLanes threads sums the chunks' sums in the same order, level by level, in place.
static __global__ void __launch_bounds__(kLanes) finish_kernel(const Launch launch) {
  double* const partials = launch.partials;
  int64_t count = chunks(launch.problem.numel);
  double sum = count == 1 ? partials[0] : 0;
  for (; count > 1; count = chunks(count)) {
    for (int64_t begin = 0, chunk = 0; begin < count; begin += kChunk, ++chunk) {
      double lane[1] = {0};
#pragma unroll
      for (int64_t row = 0; row < kChunk; row += kLanes) {
        const int64_t i = begin + row + threadIdx.x;
        if (i < count) lane[0] += partials[i];
      }
      sum = fold<int(kLanes)>(lane);
      if (threadIdx.x == 0) partials[chunk] = sum;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) write_result(launch, sum);
}

// ---- Elements ----------------------------------------------------------------------------------------------------

// An element in registers, as evaluate asks for it.
template <class C>
struct ElementAccess {
  const C logit, target, pos_weight, weight, kept, factor_of_derivative;
  C &result, &summand;
  LossGroup<C>& losses;
  FL_METHOD C z() const { return logit; }
  FL_METHOD C y() const { return target; }
  FL_METHOD C p() const { return pos_weight; }
  FL_METHOD C w() const { return weight; }
  FL_METHOD C mask() const { return kept; }
  FL_METHOD C factor() const { return factor_of_derivative; }
  FL_METHOD void out(C value) const { result = value; }
  FL_METHOD void term(C value) const { summand = value; }
  FL_METHOD LossGroup<C> group() const { return losses; }
  FL_METHOD void group(const LossGroup<C>& group) const { losses = group; }
};

// N elements, of which `count` exist: their results, and what they add to the sums. kAgain: the losses one by one.
template <Output kOutput, class L, Terms kTerms, bool kAgain, class C, int N, bool kGrouped>
FL_DEVICE void evaluate_pack(const C (&z)[N], const C (&y)[N], const C (&p)[N], const C (&w)[N], const C (&kept)[N],
                             const C (&factor)[N], int count, const Settings<C>& settings, C (&values)[N],
                             Sums<C, N, kGrouped>& sums) {
  // The derivative by the target always as for infinite weights: the same bits, and twice would be too many registers.
  constexpr bool kCareful = kAgain || kOutput == Output::kGradTarget;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    C term = 0;
    LossGroup<C> group = {};
    if constexpr (kGrouped) group = sums.lanes[k];
    const ElementAccess<C> element = {z[k], y[k], p[k], w[k], kept[k], factor[k], values[k], term, group};
    evaluate<kOutput, L, kTerms, kCareful, C>(element, settings);
    if constexpr (has_weights(kTerms) && !kCareful) {
      const C result = has_elements(kOutput) ? values[k] : term;
      if (result != result) evaluate<kOutput, L, kTerms, /*kAgain=*/true, C>(element, settings);
    }
    if constexpr (kGrouped) {
      if (k < count) sums.lanes[k] = group;
    } else if constexpr (has_sum(kOutput)) {
      sums.lanes[k] += k < count ? double(term) : 0.0;
    }
  }
}

// What a chunk adds up to. again(): its losses one by one, for a chunk of one element or where the groups overflow.
template <bool kGrouped, class Sums, class Again>
FL_DEVICE void finish_chunk(const Launch& launch, int64_t chunk, Sums& sums, Again again) {
  double sum = sums.folded();
  if constexpr (kGrouped) {
    const double of_groups = from_first_thread(sum);
    if (launch.problem.numel - chunk * kChunk == 1 || !(of_groups - of_groups == 0)) sum = again();
  }
  if (threadIdx.x == 0) write_sum(launch, chunk, sum);
}

// Whether the gradient is there already, having been made for the grad_output that has come.
template <Output kOutput, class C>
FL_DEVICE bool is_finished(const Launch& launch, const Source<C>& grad_output) {
  return kOutput == Output::kGradLogits && launch.made_for_one && grad_output.constant && grad_output.value == C(1);
}

template <class C, int N>
FL_DEVICE void fill(C (&values)[N], C value) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = value;
}

// A plain problem with full logits and targets of types Z and Y; the gradient has the logits' type.
template <Output kOutput, class Z, class Y>
__global__ void __launch_bounds__(kLanes / kPerThread<Z>, 1) typed_kernel(const Launch launch) {
  using C = typename Arithmetic<Z>::Type;
  constexpr int N = kPerThread<Z>;
  constexpr bool kGrouped = is_grouped(kOutput, Terms::kPlain);
  const Problem& problem = launch.problem;
  const Z* const logits = static_cast<const Z*>(problem.logits.data);
  const Y* const target = static_cast<const Y*>(problem.target.data);
  Z* const out = static_cast<Z*>(problem.out);
  const C scale = C(problem.scale);
  const Source<C> grad_output = Source<C>::make(problem.grad_output, C(1));
  if (is_finished<kOutput>(launch, grad_output)) return;
  const bool aligned =
      is_aligned<Z, N>(logits) && is_aligned<Y, N>(target) && (!has_elements(kOutput) || is_aligned<Z, N>(out));
  C ones[N], factor[N];
  fill(ones, C(1));
  fill(factor, scale);

  for (int64_t chunk = blockIdx.x; chunk < chunks(problem.numel); chunk += gridDim.x) {
    const int64_t begin = chunk * kChunk + int64_t(threadIdx.x) * N, end = chunk * kChunk + kChunk;
    const int64_t last = end < problem.numel ? end : problem.numel;
    Sums<C, N, kGrouped> sums;
    const auto step = [&](int64_t i, int count, const C(&z)[N], const C(&y)[N], C(&values)[N]) {
      if constexpr (takes_grad_output(kOutput)) {
        grad_output.read(problem.grad_output, problem.numel, i, count, factor);
#pragma unroll
        for (int k = 0; k < N; ++k) factor[k] = scale * factor[k];
      }
      evaluate_pack<kOutput, Bce, Terms::kPlain, false>(z, y, ones, ones, ones, factor, count, Settings<C>{}, values,
                                                        sums);
    };
    const auto ragged = [&](auto use) {  // as many elements as there are, wherever they lie
#pragma unroll 1
      for (int64_t i = begin; i < last; i += kLanes) {
        const int count = last - i < N ? int(last - i) : N;
        C z[N], y[N], values[N];
        load(logits + i, count, z);
        load(target + i, count, y);
        use(i, count, z, y, values);
      }
    };
    if (aligned && end <= problem.numel) {
#pragma unroll 2
      for (int64_t i = begin; i < end; i += kLanes) {
        C z[N], y[N], values[N];
        load_pack(logits + i, z);
        load_pack(target + i, y);
        step(i, N, z, y, values);
        if constexpr (has_elements(kOutput)) store_pack(out + i, values);
      }
    } else {
      ragged([&](int64_t i, int count, const C(&z)[N], const C(&y)[N], C(&values)[N]) {
        step(i, count, z, y, values);
        if constexpr (has_elements(kOutput)) store(out + i, count, values);
      });
    }
    if constexpr (has_sum(kOutput)) {
      finish_chunk<kGrouped>(launch, chunk, sums, [&] {
        Sums<C, N, false> one_by_one;
        ragged([&](int64_t, int count, const C(&z)[N], const C(&y)[N], C(&values)[N]) {
          evaluate_pack<Output::kLossSum, Bce, Terms::kPlain, true>(z, y, ones, ones, ones, factor, count,
                                                                    Settings<C>{}, values, one_by_one);
        });
        return one_by_one.folded();
      });
    }
  }
}

// Everything else: any loss L (a struct of losses.h), operands of any type, broadcast in any way, arithmetic in C.
template <Output kOutput, class L, Terms kTerms, class C>
__global__ void __launch_bounds__(kLanes / kPerThread<C>, 1) general_kernel(const Launch launch) {
  constexpr int N = kPerThread<C>;
  constexpr bool kGrouped = is_grouped(kOutput, kTerms);
  const Problem& problem = launch.problem;
  const int64_t numel = problem.numel;
  const Source<C> logits = Source<C>::make(problem.logits, C(0)), target = Source<C>::make(problem.target, C(0));
  const Source<C> weight = Source<C>::make(problem.weight, C(1)), mask = Source<C>::make(problem.mask, C(1));
  const Source<C> pos_weight = Source<C>::make(problem.pos_weight, C(1));
  const Source<C> grad_output = Source<C>::make(problem.grad_output, C(1));
  if (is_finished<kOutput>(launch, grad_output)) return;
  const C scale = C(launch.count != nullptr ? 1 / *launch.count : problem.scale);
  const Settings<C> settings = settings_of<C>(problem.options);

  for (int64_t chunk = blockIdx.x; chunk < chunks(numel); chunk += gridDim.x) {
    const int64_t begin = chunk * kChunk + int64_t(threadIdx.x) * N;
    const int64_t end = chunk * kChunk + kChunk < numel ? chunk * kChunk + kChunk : numel;
    Sums<C, N, kGrouped> sums;
#pragma unroll 1
    for (int64_t i = begin; i < end; i += kLanes) {
      const int count = end - i < N ? int(end - i) : N;
      C z[N], y[N], p[N], w[N], kept[N], factor[N], values[N];
      target.read(problem.target, numel, i, count, y);
      mask.read(problem.mask, numel, i, count, kept);
      if constexpr (kOutput != Output::kCount) logits.read(problem.logits, numel, i, count, z);
      if constexpr (has_weights(kTerms)) {
        weight.read(problem.weight, numel, i, count, w);
        pos_weight.read(problem.pos_weight, numel, i, count, p);
      }
      fill(factor, C(1));
      if constexpr (takes_grad_output(kOutput)) grad_output.read(problem.grad_output, numel, i, count, factor);
#pragma unroll
      for (int k = 0; k < N; ++k) factor[k] = scale * factor[k];
      evaluate_pack<kOutput, L, kTerms, false>(z, y, p, w, kept, factor, count, settings, values, sums);
      if constexpr (has_elements(kOutput)) {
        with_floating_type(problem.out_dtype, problem.out, [&](auto* out) { store(out + i, count, values); });
      }
    }
    if constexpr (has_sum(kOutput)) {
      finish_chunk<kGrouped>(launch, chunk, sums, [&] {
        Sums<C, N, false> one_by_one;
#pragma unroll 1
        for (int64_t i = begin; i < end; i += kLanes) {
          const int count = end - i < N ? int(end - i) : N;
          C z[N], y[N], kept[N], unused[N], values[N];
          fill(unused, C(1));
          logits.read(problem.logits, numel, i, count, z);
          target.read(problem.target, numel, i, count, y);
          mask.read(problem.mask, numel, i, count, kept);
          evaluate_pack<Output::kLossSum, L, kTerms, true>(z, y, unused, unused, kept, unused, count, settings, values,
                                                           one_by_one);
        }
        return one_by_one.folded();
      });
    }
  }
}

}  // namespace fused_logistic
