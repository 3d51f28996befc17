// Launch geometry as a pure function of the problem: what the launcher and the tests that execute the PTX both ask.
#pragma once
#include "../problem.h"

namespace fused_logistic {

constexpr int size_of(DType dtype) {
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
// Whether a typed_kernel, which knows the types at compile time, computes the problem; else general_kernel does, which
// finds them out at run time.
constexpr bool has_typed_kernel(const Problem& problem, Output output) {
  const DType logits = problem.logits.dtype, target = problem.target.dtype;
  const bool half = logits == DType::kFloat16 || logits == DType::kBFloat16;
  const bool types =
      target == logits || target == DType::kUInt8 || target == DType::kInt64 || (half && target == DType::kFloat32);
  return types && terms_of(problem, output) == Terms::kPlain && is_full(problem.logits, problem.numel) &&
         is_full(problem.target, problem.numel) && problem.compute_double == (logits == DType::kFloat64) &&
         (!has_elements(output) || problem.out_dtype == logits);
}

// Neighbouring elements of a thread: what 16 bytes hold of them, and at least the lanes that are joined.
constexpr int per_thread(int bytes) { return bytes > 4 ? int(kJoined) : 16 / bytes; }
template <class T>
constexpr int kPerThread = per_thread(sizeof(T));

struct Plan {
  Terms terms;
  bool typed;        // typed_kernel, else general_kernel
  int per_thread;    // neighbouring elements of a thread
  int block;         // threads: one for per_thread of the kLanes lanes
  int64_t grid;      // blocks, each of which takes chunks blockIdx.x, blockIdx.x + grid, ...; 0: nothing to launch
  int64_t partials;  // doubles of workspace
  bool finish;       // whether finish_kernel (one block of kLanes threads) has to follow
};

// multiprocessors: of the device. It decides how many blocks there are, and changes no bit of any result.
constexpr Plan plan(const Problem& problem, Output output, int multiprocessors) {
  Plan p = {};
  p.terms = terms_of(problem, output);
  p.typed = has_typed_kernel(problem, output);
  p.per_thread = per_thread(size_of(p.typed                  ? problem.logits.dtype
                                    : problem.compute_double ? DType::kFloat64
                                                             : DType::kFloat32));
  p.block = int(kLanes) / p.per_thread;
  const int64_t most = int64_t(multiprocessors) * 32;  // more blocks than are resident: the last ones even out
  p.grid = chunks(problem.numel) < most ? chunks(problem.numel) : most;
  // One chunk: its block writes the result itself.
  p.finish = has_sum(output) && chunks(problem.numel) != 1;
  p.partials = p.finish ? chunks(problem.numel) : 0;
  return p;
}

}  // namespace fused_logistic
