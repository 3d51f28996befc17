// The CUDA kernels: pointers and sizes in, no torch. They give the bits of the CPU kernels, sums included: the elements
// by losses.h, the sums in the order that problem.h fixes. A block takes one chunk; its thread t owns the lanes t N ..
// t N + N - 1 and adds up its part of each row in registers. N: kPerThread in plan.h.
#pragma once
#include "access.cuh"
#include "element.cuh"
#include "kernels.h"
#include "sums.cuh"

namespace fused_logistic {

// ---- Sums --------------------------------------------------------------------------------------------------------

// A thread's part of a chunk's sum: of its lanes the groups of their losses or, one by one, what is added in fp64.
template <class C, bool kGrouped>
struct Sums {
  double lanes[kPerThread] = {};
  __device__ __forceinline__ double folded() { return fold<kThreads>(lanes); }
};
template <class C>
struct Sums<C, true> {
  LossGroup<C> lanes[kPerThread] = {};
  __device__ __forceinline__ double folded() {
    double sum[1] = {double(loss(joined(joined(lanes[0], lanes[1]), joined(lanes[2], lanes[3]))))};
    return fold<kThreads>(sum);
  }
};

// Of one thread only: the result in its type.
FL_DEVICE void write_result(const Launch& launch, double sum) {
  const double value = sum / (launch.count != nullptr ? *launch.count : launch.divisor);
  with_type(FloatingTypes{}, launch.result_dtype, launch.result,
            [&](auto* out) { store_some(out, 1, reinterpret_cast<const double (&)[1]>(value)); });
}
FL_DEVICE void write_sum(const Launch& launch, int64_t chunk, double sum) {
  if (chunks(launch.problem.numel) == 1) return write_result(launch, sum);
  launch.partials[chunk] = sum;
}

static __global__ void __launch_bounds__(kLanes) finish_kernel(const Launch launch) {
  const double sum = sum_of_chunks(launch.partials, chunks(launch.problem.numel));
  if (threadIdx.x == 0) write_result(launch, sum);
}

// ---- Elements ----------------------------------------------------------------------------------------------------

// A thread's neighbouring elements.
template <class C>
struct Elements {
  C z[kPerThread], y[kPerThread], p[kPerThread], w[kPerThread], kept[kPerThread], factor[kPerThread];
};

// Of elements, of which `count` exist: their results, and what they add to the sums. kAgain: the losses one by one.
template <Output kOutput, class L, Terms kTerms, bool kAgain, class C, bool kGrouped>
FL_DEVICE void evaluate_pack(const Elements<C>& of, int count, const Settings<C>& settings, C (&values)[kPerThread],
                             Sums<C, kGrouped>& sums) {
  // The derivative by the target always as for infinite weights: the same bits, and twice would be too many registers.
  constexpr bool kCareful = kAgain || kOutput == Output::kGradTarget;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    C term = 0;
    LossGroup<C> group = {};
    if constexpr (kGrouped) group = sums.lanes[k];
    const ElementAccess<C> element = {of.z[k],      of.y[k],   of.p[k], of.w[k], of.kept[k],
                                      of.factor[k], values[k], term,    group};
    evaluate_element<kOutput, L, kTerms, kCareful>(element, settings);
    if constexpr (kGrouped) {
      if (k < count) sums.lanes[k] = group;
    } else if constexpr (has_sum(kOutput)) {
      sums.lanes[k] += k < count ? double(term) : 0.0;
    }
  }
}

// What a chunk adds up to. again(): its losses one by one, for a chunk of one element or where the groups are not finite.
template <class C, bool kGrouped, class Again>
FL_DEVICE void finish_chunk(const Launch& launch, int64_t chunk, Sums<C, kGrouped>& sums, Again again) {
  double sum = sums.folded();
  if constexpr (kGrouped) {
    const double of_groups = from_first_thread(sum);
    if (launch.problem.numel - chunk * kChunk == 1 || !(of_groups - of_groups == 0)) sum = again();
  }
  if (threadIdx.x == 0) write_sum(launch, chunk, sum);
}

// ---- What a kernel knows -----------------------------------------------------------------------------------------

// The types in memory: of the logits and of an elementwise result, of the target, of a weight or grad_output, of the mask.
// Typed: with logits of one type, and all that is read for each element by itself lying so that vectors of it can be read.
template <class Z>
using OtherTargets = std::conditional_t<sizeof(Z) == 2, Types<uint8_t, int64_t, float>, Types<uint8_t, int64_t>>;
template <class LogitsType, class TargetTypes>
struct Typed {
  using Z = LogitsType;
  static constexpr bool kTyped = true, kHalf = sizeof(Z) == 2;
  using C = typename Arithmetic<Z>::Type;
  using Logits = Types<Z>;
  using Target = TargetTypes;
  using Factor = std::conditional_t<kHalf, Types<Z, float>, Types<Z>>;
  using Mask = Types<uint8_t>;
};
// For kCount: of the operands only the mask, and where targets are ignored these, of any type but fp64.
struct Counted : Typed<float, Types<float, Half, BFloat16, uint8_t, int8_t, int16_t, int32_t, int64_t>> {};
// Arithmetic in C, the operands of any type.
template <class S>
struct General {
  using Z = S;
  static constexpr bool kTyped = false, kHalf = false;
  using C = S;
  using Logits = FloatingTypes;
  using Target = AnyTypes;
  using Factor = AnyTypes;
  using Mask = Types<uint8_t>;
};

// How many rows of a chunk are read before the first is computed, and how many blocks a multiprocessor should hold, which
// bounds a thread's registers. Of those that nothing spills with, the fastest on an H100 (docs/cuda.md).
struct Shape {
  int rows, blocks;
};
template <Output kOutput, class L, Terms kTerms, class T>
constexpr Shape shape() {
  if (!T::kTyped) return {1, 1};
  if (!std::is_same_v<L, Bce>) return kTerms == Terms::kPlain ? Shape{1, 4} : Shape{1, 2};
  if (kOutput == Output::kCount) return {2, 4};
  if (takes_grad_output(kOutput)) return {1, 4};
  if (has_weights(kTerms)) return {2, 4};
  if (has_options(kTerms)) return T::kHalf ? Shape{1, 6} : Shape{2, 4};
  if (sizeof(typename T::C) == 8) return {2, 1};
  if (std::is_same_v<typename T::Target, OtherTargets<typename T::Z>>) return {1, 5};
  if (std::is_same_v<typename T::Z, Half>) return {4, 4};
  return T::kHalf ? Shape{2, 4} : Shape{8, 2};
}

// ---- The kernel --------------------------------------------------------------------------------------------------

// Loss L (a struct of losses.h) of the elements of a chunk.
template <Output kOutput, class L, Terms kTerms, class T>
__global__ void __launch_bounds__(kThreads, (shape<kOutput, L, kTerms, T>().blocks))
    elements_kernel(const Launch launch) {
  using C = typename T::C;
  constexpr int N = kPerThread, kRows = shape<kOutput, L, kTerms, T>().rows;
  constexpr bool kGrouped = is_grouped<L>(kOutput, kTerms), kTyped = T::kTyped;
  const Problem& problem = launch.problem;
  const bool fits = fits_division(problem.numel);
  using Factor = Source<C, typename T::Factor, kTyped>;
  const Factor grad_output = Factor::make(problem.grad_output, C(1));
  if constexpr (kOutput == Output::kGradLogits) {
    if (launch.is_made && launch.layouts.grad_output.reading == Reading::kConstant && grad_output.value != C(0) &&
        grad_output.value == Factor::make(launch.made_for, C(1)).value) {
      return;  // the gradient is there already, having been made for the grad_output that has come
    }
  }
  const Factor weight = Factor::make(problem.weight, C(1)), pos_weight = Factor::make(problem.pos_weight, C(1));
  const auto target = Source<C, typename T::Target, kTyped>::make(problem.target, C(0));
  const auto mask = Source<C, typename T::Mask, kTyped>::make(problem.mask, C(1));
  C scale = C(launch.count != nullptr ? 1 / *launch.count : problem.scale);
  if constexpr (kOutput == Output::kLossSumAndGrad) scale = scale * grad_output.value;
  const Settings<C> settings = settings_of<C>(problem);

  const int64_t chunk = blockIdx.x, begin = chunk * kChunk + int64_t(threadIdx.x) * N, next = (chunk + 1) * kChunk;
  const int64_t end = next < problem.numel ? next : problem.numel;
  Sums<C, kGrouped> sums;
  // Elements i .. i + count - 1; kWhole: all N, by vectors.
  const auto read = [&](auto whole, int64_t i, int count, Elements<C>& of) {
    constexpr bool kWhole = decltype(whole)::value;
    const auto load = [&](auto types, const Operand& operand, C(&out)[N]) {
      with_type(types, operand.dtype, operand.data, [&](auto* data) {
        if constexpr (kWhole) {
          load_pack(data + i, out);
        } else {
          load_some(data + i, count, out);
        }
      });
    };
    if constexpr (kOutput != Output::kCount) load(typename T::Logits{}, problem.logits, of.z);
    if (kOutput == Output::kCount && problem.target.data == nullptr) {
#pragma unroll
      for (int k = 0; k < N; ++k) of.y[k] = 0;
    } else if constexpr (kTyped) {
      load(typename T::Target{}, problem.target, of.y);
    } else if (problem.target.classes > 0) {
      read_classes(problem, launch.layouts.target, fits, i, count, of.y);
    } else {
      target.template read<kWhole>(problem.target, launch.layouts.target, fits, i, count, of.y);
    }
    if constexpr (has_weights(kTerms)) {
      pos_weight.template read<kWhole>(problem.pos_weight, launch.layouts.pos_weight, fits, i, count, of.p);
      weight.template read<kWhole>(problem.weight, launch.layouts.weight, fits, i, count, of.w);
    }
    if constexpr (has_options(kTerms))
      mask.template read<kWhole>(problem.mask, launch.layouts.mask, fits, i, count, of.kept);
    if constexpr (takes_grad_output(kOutput)) {
      grad_output.template read<kWhole>(problem.grad_output, launch.layouts.grad_output, fits, i, count, of.factor);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) of.factor[k] = takes_grad_output(kOutput) ? scale * of.factor[k] : scale;
  };
  const auto compute = [&](auto whole, int64_t i, int count, const Elements<C>& of) {
    C values[N];
    evaluate_pack<kOutput, L, kTerms, false>(of, count, settings, values, sums);
    if constexpr (has_elements(kOutput)) {
      with_type(typename T::Logits{}, problem.out_dtype, problem.out, [&](auto* data) {
        if constexpr (decltype(whole)::value) {
          store_pack(data + i, values);
        } else {
          store_some(data + i, count, values);
        }
      });
    }
  };
  // As many elements as there are, a row at a time.
  const auto ragged = [&](auto use) {
#pragma unroll 1
    for (int64_t i = begin; i < end; i += kLanes) {
      const int count = end - i < N ? int(end - i) : N;
      Elements<C> of;
      read(std::false_type{}, i, count, of);
      use(i, count, of);
    }
  };
  if (kTyped && next <= problem.numel) {
#pragma unroll 1
    for (int64_t i = begin; i < next; i += kRows * kLanes) {
      Elements<C> of[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) read(std::true_type{}, i + row * kLanes, N, of[row]);
#pragma unroll
      for (int row = 0; row < kRows; ++row) compute(std::true_type{}, i + row * kLanes, N, of[row]);
    }
  } else {
    ragged([&](int64_t i, int count, const Elements<C>& of) { compute(std::false_type{}, i, count, of); });
  }
  if constexpr (has_sum(kOutput)) {
    finish_chunk(launch, chunk, sums, [&] {
      Sums<C, false> one_by_one;
      ragged([&](int64_t, int count, const Elements<C>& of) {
        C unused[N];
        evaluate_pack<Output::kLossSum, L, kTerms, true>(of, count, settings, unused, one_by_one);
      });
      return one_by_one.folded();
    });
  }
}

}  // namespace fused_logistic
