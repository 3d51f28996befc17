// The CUDA kernels: pointers and sizes in, no torch. They give the bits of the CPU kernels, sums included: the elements
// by losses.h, the sums in the order that problem.h fixes. A block takes one chunk at a time; its thread t owns the
// lanes t N .. t N + N - 1, N being the elements that 16 bytes hold, and adds up its part of each row in registers.
#pragma once
#include "../losses.h"
#include "access.cuh"
#include "kernels.h"

namespace fused_logistic {

// ---- Sums --------------------------------------------------------------------------------------------------------

// The sum of a block's kLanes lanes, of which each thread has N, folded in halves; right in thread 0.
template <int N>
FL_DEVICE double fold(const double (&lanes)[N]) {
  constexpr int kThreads = int(kLanes) / N;
  __shared__ double shared[kLanes];
  const int t = int(threadIdx.x);
  __syncthreads();  // the last fold has read what this one overwrites
#pragma unroll
  for (int k = 0; k < N; ++k) shared[t * N + k] = lanes[k];
  __syncthreads();
#pragma unroll
  for (int quarter = int(kLanes) / 4; quarter >= 2 * kWarpSize; quarter /= 4) {  // two halvings at a time
    for (int i = t; i < quarter; i += kThreads) {
      shared[i] = (shared[i] + shared[i + 2 * quarter]) + (shared[i + quarter] + shared[i + 3 * quarter]);
    }
    __syncthreads();
  }
  double sum = 0;
  if (t < kWarpSize) {
    sum = shared[t] + shared[t + kWarpSize];
#pragma unroll
    for (int half = kWarpSize / 2; half >= 1; half /= 2) sum += from_later_thread(sum, half);
  }
  return sum;
}

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
      sum = fold(lane);
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
  FL_METHOD C z() const { return logit; }
  FL_METHOD C y() const { return target; }
  FL_METHOD C p() const { return pos_weight; }
  FL_METHOD C w() const { return weight; }
  FL_METHOD C mask() const { return kept; }
  FL_METHOD C factor() const { return factor_of_derivative; }
  FL_METHOD void out(C value) const { result = value; }
  FL_METHOD void term(C value) const { summand = value; }
};

// Whether the gradient is there already, having been made for the grad_output that has come.
template <Output kOutput, class C>
FL_DEVICE bool is_finished(const Launch& launch, const Source<C>& grad_output) {
  return kOutput == Output::kGradLogits && launch.made_for_one && grad_output.constant && grad_output.value == C(1);
}

// A plain problem with full logits and targets of types Z and Y; the gradient has the logits' type.
template <Output kOutput, class Z, class Y>
__global__ void __launch_bounds__(kLanes * sizeof(Z) / 16, 1) typed_kernel(const Launch launch) {
  using C = typename Arithmetic<Z>::Type;
  constexpr int N = 16 / sizeof(Z);
  const Problem& problem = launch.problem;
  const Z* const logits = static_cast<const Z*>(problem.logits.data);
  const Y* const target = static_cast<const Y*>(problem.target.data);
  Z* const out = static_cast<Z*>(problem.out);
  const C scale = C(problem.scale);
  const Source<C> grad_output = Source<C>::make(problem.grad_output, C(1));
  if (is_finished<kOutput>(launch, grad_output)) return;
  const bool aligned =
      is_aligned<Z, N>(logits) && is_aligned<Y, N>(target) && (!has_elements(kOutput) || is_aligned<Z, N>(out));

  for (int64_t chunk = blockIdx.x; chunk < chunks(problem.numel); chunk += gridDim.x) {
    const int64_t begin = chunk * kChunk + int64_t(threadIdx.x) * N, end = chunk * kChunk + kChunk;
    double lanes[N] = {};
    const auto step = [&](int64_t i, int count, const C(&z)[N], const C(&y)[N], C(&values)[N]) {
      C factor[N], term[N];
      if constexpr (takes_grad_output(kOutput)) grad_output.read(problem.grad_output, problem.numel, i, count, factor);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        factor[k] = takes_grad_output(kOutput) ? scale * factor[k] : scale;
        const ElementAccess<C> element = {z[k], y[k], C(1), C(1), C(1), factor[k], values[k], term[k]};
        evaluate<kOutput, Bce, /*kInfinite=*/false, C>(element, Settings<C>{}, /*plain=*/true);
        if constexpr (has_sum(kOutput)) lanes[k] += k < count ? double(term[k]) : 0.0;
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
      const int64_t last = end < problem.numel ? end : problem.numel;
#pragma unroll 1
      for (int64_t i = begin; i < last; i += kLanes) {
        const int count = last - i < N ? int(last - i) : N;
        C z[N], y[N], values[N];
        load(logits + i, count, z);
        load(target + i, count, y);
        step(i, count, z, y, values);
        if constexpr (has_elements(kOutput)) store(out + i, count, values);
      }
    }
    if constexpr (has_sum(kOutput)) {
      const double sum = fold(lanes);
      if (threadIdx.x == 0) write_sum(launch, chunk, sum);
    }
  }
}

// Everything else: any loss L (a struct of losses.h), operands of any type, broadcast in any way, arithmetic in C.
template <Output kOutput, class L, class C>
__global__ void __launch_bounds__(kLanes * sizeof(C) / 16, 1) general_kernel(const Launch launch) {
  constexpr int N = 16 / sizeof(C);
  const Problem& problem = launch.problem;
  const int64_t numel = problem.numel;
  const Source<C> logits = Source<C>::make(problem.logits, C(0)), target = Source<C>::make(problem.target, C(0));
  const Source<C> weight = Source<C>::make(problem.weight, C(1)), mask = Source<C>::make(problem.mask, C(1));
  const Source<C> pos_weight = Source<C>::make(problem.pos_weight, C(1));
  const Source<C> grad_output = Source<C>::make(problem.grad_output, C(1));
  if (is_finished<kOutput>(launch, grad_output)) return;
  const C scale = C(launch.count != nullptr ? 1 / *launch.count : problem.scale);
  const Settings<C> settings = settings_of<C>(problem.options);
  const bool plain = is_plain(problem, kOutput);

  for (int64_t chunk = blockIdx.x; chunk < chunks(numel); chunk += gridDim.x) {
    const int64_t end = chunk * kChunk + kChunk < numel ? chunk * kChunk + kChunk : numel;
    double lanes[N] = {};
#pragma unroll 1
    for (int64_t i = chunk * kChunk + int64_t(threadIdx.x) * N; i < end; i += kLanes) {
      const int count = end - i < N ? int(end - i) : N;
      C z[N], y[N], p[N], w[N], kept[N], factor[N], values[N], term[N];
      target.read(problem.target, numel, i, count, y);
      mask.read(problem.mask, numel, i, count, kept);
      if constexpr (kOutput != Output::kCount) {
        logits.read(problem.logits, numel, i, count, z);
        weight.read(problem.weight, numel, i, count, w);
        pos_weight.read(problem.pos_weight, numel, i, count, p);
      }
      if constexpr (takes_grad_output(kOutput)) grad_output.read(problem.grad_output, numel, i, count, factor);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        factor[k] = takes_grad_output(kOutput) ? scale * factor[k] : scale;
        const ElementAccess<C> element = {z[k], y[k], p[k], w[k], kept[k], factor[k], values[k], term[k]};
        // The derivative by the target always as for infinite weights: the same bits, and twice would be too many registers.
        evaluate<kOutput, L, /*kInfinite=*/kOutput == Output::kGradTarget, C>(element, settings, plain);
        if constexpr (kOutput != Output::kCount && kOutput != Output::kGradTarget) {
          const C result = has_elements(kOutput) ? values[k] : term[k];
          if (result != result) evaluate<kOutput, L, /*kInfinite=*/true, C>(element, settings, plain);
        }
        if constexpr (has_sum(kOutput)) lanes[k] += k < count ? double(term[k]) : 0.0;
      }
      if constexpr (has_elements(kOutput)) {
        with_floating_type(problem.out_dtype, problem.out, [&](auto* out) { store(out + i, count, values); });
      }
    }
    if constexpr (has_sum(kOutput)) {
      const double sum = fold(lanes);
      if (threadIdx.x == 0) write_sum(launch, chunk, sum);
    }
  }
}

}  // namespace fused_logistic
