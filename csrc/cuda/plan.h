// Launch geometry as a pure function of the problem: what the launcher and the tests that execute the PTX both ask.
#pragma once
#include "../problem.h"

namespace fused_logistic {

// Neighbouring elements of a thread: the lanes that are joined.
constexpr int kPerThread = int(kJoined);
constexpr int kThreads = int(kLanes) / kPerThread;
// What the address of a vector of so many bytes is a multiple of.
constexpr int vector_alignment(int bytes) { return bytes < 16 ? bytes : 16; }
inline bool is_aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % vector_alignment(kPerThread * size_of(dtype)) == 0;
}

// ---- Operands ------------------------------------------------------------------------------------------------------

// x / y for x < 2^32 by a multiplication (Granlund and Montgomery, "Division by invariant integers using multiplication",
// 1994): (mulhi(x, multiplier) + x) >> shift, shift being the logarithm of y, rounded up.
struct Division {
  uint32_t multiplier, shift;
};
constexpr bool fits_division(int64_t x) { return x < int64_t(1) << 32; }
constexpr Division division_by(int64_t y) {  // 0 < y < 2^32
  uint32_t shift = 0;
  while ((int64_t(1) << shift) < y) ++shift;
  return {uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - uint64_t(y))) / uint64_t(y) + 1), shift};
}

// How a thread finds an operand's values for its neighbouring elements.
enum class Reading : int8_t {
  kConstant,  // one for all, or none
  kFull,      // they are the operand's own neighbours ...
  kRepeated,  // ... of which there are fewer than elements
  kShared,    // they share one
  kGathered,  // each by itself
};
struct Layout {
  Reading reading = Reading::kConstant;
  Division by_inner = {}, by_size = {};
};
inline Layout layout_of(const Operand& operand, int64_t numel) {
  if (is_constant(operand) || numel == 0) return {};
  const bool aligned = is_aligned(operand.data, operand.dtype);
  Layout layout = {Reading::kGathered};
  if (is_full(operand, numel)) {
    if (aligned) layout.reading = Reading::kFull;
  } else if (operand.inner % kPerThread == 0) {
    layout.reading = Reading::kShared;
  } else if (operand.inner == 1 && operand.size % kPerThread == 0 && aligned) {
    layout.reading = Reading::kRepeated;
  }
  if (fits_division(numel)) {
    layout.by_inner = division_by(operand.inner);
    layout.by_size = division_by(operand.classes > 0 ? operand.classes : operand.size);
  }
  return layout;
}

struct Layouts {
  Layout target, weight, pos_weight, mask, grad_output;
};
inline Layouts layouts_of(const Problem& of) {
  const auto layout = [&](const Operand& operand) { return layout_of(operand, of.numel); };
  return {layout(of.target), layout(of.weight), layout(of.pos_weight), layout(of.mask), layout(of.grad_output)};
}

// ---- Kernels -------------------------------------------------------------------------------------------------------

// Whether the problem has a kernel that knows the logits' type and mostly the other operands', and reads vectors (Typed in
// kernels.cuh); else one that finds all of it out at run time does (General).
inline bool has_typed_kernel(const Problem& problem, Output output) {
  const DType logits = problem.logits.dtype, target = problem.target.dtype;
  const int64_t numel = problem.numel;
  const auto full = [&](const Operand& operand) {
    return is_full(operand, numel) && is_aligned(operand.data, operand.dtype);
  };
  const auto found = [&](const Operand& operand) {  // by 32-bit division, if at all
    return is_constant(operand) || fits_division(numel) || full(operand);
  };
  const auto factor = [&](const Operand& operand) {  // a weight, or grad_output
    const bool type = operand.dtype == logits || (operand.dtype == DType::kFloat32 && logits != DType::kFloat64);
    return found(operand) && (is_constant(operand) || type);
  };
  if (output == Output::kCount) {
    return found(problem.mask) && !problem.compute_double && (problem.target.data == nullptr || full(problem.target));
  }
  const bool half = size_of(logits) == 2;
  const bool types =
      target == logits || target == DType::kUInt8 || target == DType::kInt64 || (half && target == DType::kFloat32);
  const bool rich = terms_of(problem, output) != Terms::kPlain || problem.options.loss != Loss::kBce;
  return types && has_plain_kernels(output) && !(rich && logits == DType::kFloat64) && full(problem.logits) &&
         full(problem.target) && problem.compute_double == (logits == DType::kFloat64) && factor(problem.weight) &&
         factor(problem.pos_weight) && factor(problem.grad_output) && found(problem.mask) &&
         (!has_elements(output) || (problem.out_dtype == logits && is_aligned(problem.out, logits)));
}

struct Plan {
  Terms terms;  // of the kernel: for some there is none of their own, but one that computes more
  bool typed;
  int64_t grid;      // blocks of kThreads, one a chunk; 0: nothing to launch
  int64_t partials;  // doubles of workspace
  bool finish;       // whether finish_kernel (one block of kLanes threads) has to follow
};
inline Plan plan(const Problem& problem, Output output) {
  Plan p = {};
  p.typed = has_typed_kernel(problem, output);
  p.terms = terms_of(problem, output);
  if (problem.options.loss != Loss::kBce) {
    // The less common losses have typed kernels for whole exponents, without options and weights, alone.
    const bool plain = p.terms == Terms::kPlain && problem.target.dtype == problem.logits.dtype;
    const bool common = problem.options.loss == Loss::kFocal;
    p.typed = p.typed && (common || (plain && problem.options.has_whole_powers));
    if (!plain || !p.typed) p.terms = Terms::kAll;
  } else if (p.terms == Terms::kPlain && !p.typed) {
    p.terms = Terms::kOptions;
  } else if (p.terms == Terms::kWeights) {
    p.terms = Terms::kAll;
  }
  p.grid = chunks(problem.numel);
  // One chunk: its block writes the result itself.
  p.finish = has_sum(output) && p.grid != 1;
  p.partials = p.finish ? p.grid : 0;
  return p;
}

}  // namespace fused_logistic
