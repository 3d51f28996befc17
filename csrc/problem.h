// One elementwise problem, described by pointers and sizes: what the torch glue hands to the CPU and CUDA kernels.
#pragma once
#include <stdint.h>

#include <type_traits>

#include "options.h"

namespace fused_logistic {

enum class DType : int8_t { kFloat64, kFloat32, kFloat16, kBFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64 };
// Of one element, in bytes. static: see has_sum.
static constexpr int size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
      return 2;
    default:
      return 1;
  }
}

// fp16 and bf16 as they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The DType of a type in memory: its place among these. static: see has_sum.
template <class T, class First, class... Rest>
static constexpr int place_among() {
  if constexpr (std::is_same_v<T, First>) {
    return 0;
  } else {
    return 1 + place_among<T, Rest...>();
  }
}
template <class T>
constexpr DType kDType =
    DType(place_among<T, double, float, Half, BFloat16, uint8_t, int8_t, int16_t, int32_t, int64_t>());

// A tensor broadcast to the problem's shape: element i of the flattened problem is data[(i / inner) % size].
// size 1: a scalar; inner 1, size = numel: a full tensor; inner 1, size = columns: one value per column;
// inner = columns, size = rows: one per row; inner = height width, size = channels: one per channel of an image.
// classes: not 0 for a target of class indices, which has no dimension of the classes. Element i, of class i / inner % classes,
// is 1 where that is the index at i / (inner classes) inner + i % inner, else 0; NaN where the index is the ignore_index.
struct Operand {
  const void* data = nullptr;  // null: absent
  DType dtype = DType::kFloat32;
  int64_t inner = 1, size = 1;
  int64_t classes = 0;
};

enum class Output : int8_t {
  kLossSum,         // sum of the loss
  kLossSumAndGrad,  // sum of the loss, and d loss / d logits times grad_output, a scalar, times scale, in one pass
  kLoss,            // every element's loss
  kCount,           // how many elements are neither masked out nor ignored
  kGradLogits,      // the elementwise derivatives times grad_output times scale
  kGradTarget,
  kGradWeight,
  kGradPosWeight,
};

struct Problem {
  int64_t numel = 0;
  Operand logits, target, weight, pos_weight, mask, grad_output;
  bool compute_double = false;  // arithmetic in fp64 (else fp32)
  void* out = nullptr;          // elementwise result: loss or derivative
  DType out_dtype = DType::kFloat32;
  double scale = 1;  // 1 / count for reduction="mean"
  Options options;
};

// static: a file built for one instruction set must not lend its copy to the others.
static constexpr bool has_sum(Output output) {
  return output == Output::kLossSum || output == Output::kLossSumAndGrad || output == Output::kCount;
}
static constexpr bool has_elements(Output output) { return output != Output::kLossSum && output != Output::kCount; }
// Whether grad_output goes into the result element by element.
static constexpr bool takes_grad_output(Output output) { return output >= Output::kGradLogits; }
static constexpr bool is_constant(const Operand& operand) {
  return operand.data == nullptr || (operand.size == 1 && operand.classes == 0);
}
static constexpr bool is_full(const Operand& operand, int64_t numel) {
  return operand.inner == 1 && operand.size == numel && operand.classes == 0;
}

// What the two terms of an element are weighed by. The less there is, the less a kernel computes; one with more in it gives an
// element the same bits for targets in [0, 1].
enum class Terms : int8_t {
  kPlain,    // the target, and every element counts
  kOptions,  // the target, smoothed; elements may be left out
  kWeights,  // the target and weights; every element counts
  kAll,
};
static constexpr bool has_options(Terms terms) { return terms == Terms::kOptions || terms == Terms::kAll; }
static constexpr bool has_weights(Terms terms) { return terms >= Terms::kWeights; }
static constexpr bool has_plain_kernels(Output output) {  // others are asked for too rarely
  return output == Output::kLossSum || output == Output::kLossSumAndGrad || output == Output::kLoss ||
         output == Output::kGradLogits;
}
static constexpr Terms terms_of(const Problem& problem, Output output) {
  if (output == Output::kCount) return Terms::kOptions;  // the same for every loss
  if (!has_plain_kernels(output)) return Terms::kAll;
  const bool weights = problem.weight.data != nullptr || problem.pos_weight.data != nullptr;
  const bool options = problem.mask.data != nullptr || !is_plain(problem.options);
  return weights ? (options ? Terms::kAll : Terms::kWeights) : options ? Terms::kOptions : Terms::kPlain;
}

// The order of every sum, on every backend, whatever the number of threads or the grid. A chunk of kChunk elements is a
// matrix of rows of kLanes, whose columns are the lanes.
// Unweighted losses, of Bce alone, make LossGroups (logistic.h), in the type of the arithmetic: each lane's, downwards; those of 4
// neighbouring lanes are joined, neighbours first; what the groups come to is added in fp64. All else that is summed, and
// a chunk of one element or whose groups do not come to a finite number, is added in fp64, each lane downwards.
// What then stands side by side, of groups or of lanes, is added neighbours first: 0 and 1, 2 and 3, ... until one is left.
// The chunks' sums are themselves summed as lanes are, until one is left.
constexpr int64_t kLanes = 1024;
constexpr int64_t kChunk = 8192;
constexpr int64_t kJoined = 4;  // lanes
constexpr int64_t chunks(int64_t numel) { return (numel + kChunk - 1) / kChunk; }
}  // namespace fused_logistic
