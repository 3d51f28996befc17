// The body of a LinearKernel: a layer with one output in one pass over its input. Each instruction set includes this
// file once, after chunk_kernel.h, whose rows compute the losses. linear.h has the order of every sum.
#pragma once
#include "chunk_kernel.h"

namespace fused_logistic {
namespace {

// Features of a row, of which so many are left; zeros in the place of others.
template <class A, class T>
FL_FN auto load_features(const T* x, int64_t left) {
  return left < width<typename Simd<A>::Vector> ? load_first(x, left) : load(x);
}

// x . w, as the sums of as many lanes as a vector has. One row at a time: the hardware asks for what follows in memory, as
// long as it is read in order. ahead: so many elements further on is what is asked for beside that.
template <class A, class T>
FL_FN auto dot(const T* x, const A* w, int64_t features, int64_t ahead) {
  using V = typename Simd<A>::Vector;
  constexpr int64_t n = width<V>, kVectors = kDotLanes / n;
  V sums[kVectors] = {};
  int64_t j = 0;
  for (; j + kDotLanes <= features; j += kDotLanes) {
    prefetch<Prefetch::kRead>(x + j + ahead, kDotLanes * sizeof(T));
    for (int64_t k = 0; k < kVectors; ++k) sums[k] = fma(load(x + j + k * n), load(w + j + k * n), sums[k]);
  }
  for (int64_t k = 0; j < features; ++k, j += n) {
    sums[k] = fma(load_features<A>(x + j, features - j), load(w + j), sums[k]);
  }
  for (int64_t half = kVectors / 2; half >= 1; half /= 2) {
    for (int64_t k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  }
  return sums[0];
}

// The dot products of a block's rows, of which the matrix has rows_in_all from the first on: the lanes are folded when all are
// there, as each fold is a chain of its own. Rows further on are asked for, the last of them in the next block: they arrive while
// this one's losses and gradients are computed, a sixth less time with 256 features in fp32, a fifth in bf16.
template <class A, class T>
FL_FN void dots_of(const T* x, int64_t stride, int64_t rows, int64_t rows_in_all, const A* w, int64_t features, A bias,
                   A* dots) {
  constexpr int64_t n = width<typename Simd<A>::Vector>, kBytesAhead = 16 << 10;
  alignas(64) A lanes[kMaxBlockRows][n];
  const int64_t ahead = kBytesAhead / (features * int64_t(sizeof(T)) + 1) + 1;
  for (int64_t r = 0; r < rows; ++r) {
    store(lanes[r], dot(x + r * stride, w, features, r + ahead < rows_in_all ? ahead * stride : 0));
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t half = n / 2; half >= 1; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[r][i] += lanes[r][i + half];
    }
    dots[r] = lanes[r][0] + bias;
  }
}

// sums += g[0] row 0 + g[1] row 1 + ..., one after the other.
template <int kRows, class A, class T>
FL_FN void add_rows(const T* x, int64_t stride, const A* g, int64_t features, A* sums) {
  using V = typename Simd<A>::Vector;
  constexpr int64_t n = width<V>, kVectors = kDotLanes / n;
  V factors[kRows];
  for (int r = 0; r < kRows; ++r) factors[r] = splat<V>(g[r]);
  int64_t j = 0;
  for (; j + kDotLanes <= features; j += kDotLanes) {
    for (int64_t k = 0; k < kVectors; ++k) {
      V sum = load(sums + j + k * n);
      for (int r = 0; r < kRows; ++r) sum = fma(factors[r], load(x + r * stride + j + k * n), sum);
      store(sums + j + k * n, sum);
    }
  }
  for (; j < features; j += n) {
    V sum = load(sums + j);
    for (int r = 0; r < kRows; ++r) sum = fma(factors[r], load_features<A>(x + r * stride + j, features - j), sum);
    store(sums + j, sum);
  }
}

// out = g w
template <class A, class T>
FL_FN void scale_weight(A g, const A* w, int64_t features, T* out) {
  using V = typename Simd<A>::Vector;
  constexpr int64_t n = width<V>;
  const V factor = splat<V>(g);
  int64_t j = 0;
  for (; j + n <= features; j += n) store(out + j, factor * load(w + j));
  if (j == features) return;
  T end[n];
  store(end, factor * load(w + j));  // w is padded
  memcpy(out + j, end, (features - j) * sizeof(T));
}

template <Output kOutput, class C>
void run_losses_of(const Row<C, C, C>& row, int64_t count, bool plain) {
  using V = typename Simd<C>::ValueOfFew;  // a block has 16 rows of 512 fp32 features
  plain ? run_row<kOutput, Bce, Terms::kPlain, V>(row, count) : run_row<kOutput, Bce, Terms::kAll, V>(row, count);
}
template <class C>
void run_losses(const Row<C, C, C>& row, int64_t count, Output output, bool plain) {
  switch (output) {
    case Output::kLossSum:
      return run_losses_of<Output::kLossSum>(row, count, plain);
    case Output::kLossSumAndGrad:
      return run_losses_of<Output::kLossSumAndGrad>(row, count, plain);
    case Output::kLoss:
      return run_losses_of<Output::kLoss>(row, count, plain);
    default:
      return run_losses_of<Output::kGradLogits>(row, count, plain);
  }
}

template <class T, class A, class C>
void run_parts(const LinearProblem& problem, int64_t first, int64_t last, Output output, A* sums) {
  const Problem& loss = problem.loss;
  const bool plain = terms_of(loss, output) == Terms::kPlain,
             has_grad = output == Output::kLossSumAndGrad || output == Output::kGradLogits;
  Source<C> target(loss.target, loss.numel, C(0)), grad_output(loss.grad_output, loss.numel, C(1));
  Source<C> pos_weight(loss.pos_weight, loss.numel, C(1)), weight(loss.weight, loss.numel, C(1));
  Source<C> mask(loss.mask, loss.numel, C(1));
  const T* const input = static_cast<const T*>(problem.input);
  const A* const w = static_cast<const A*>(problem.linear_weight);
  const int64_t features = problem.features, stride = problem.row_stride;
  const int64_t block = block_rows(features, sizeof(T)), flush_rows = rows_per_flush(features, sizeof(T));
  alignas(64) A dots[kMaxBlockRows], factors[kMaxBlockRows];
  alignas(64) C logits[kMaxBlockRows], out[kMaxBlockRows], summands[kMaxBlockRows];
  Row<C, C, C> row = {};
  row.logits = logits;
  row.out = out;
  row.summands = summands;
  row.scale = C(loss.scale);
  row.settings = settings_of<C>(loss);

  for (int64_t part = first; part < last; ++part) {
    const int64_t part_begin = part * problem.rows_per_part;
    const int64_t part_end =
        part_begin + problem.rows_per_part < loss.numel ? part_begin + problem.rows_per_part : loss.numel;
    double loss_sum = 0, grad_sum = 0;
    double* const grad_weight = problem.grad_weight != nullptr ? problem.grad_weight + part * features : nullptr;
    int64_t pending = 0;  // rows in sums that are not yet in grad_weight
    if (has_grad && grad_weight != nullptr) {
      memset(sums, 0, padded(features) * sizeof(A));
      memset(grad_weight, 0, features * sizeof(double));
    }
    const auto flush = [&] {
      for (int64_t j = 0; j < features; ++j) grad_weight[j] += double(sums[j]);
      memset(sums, 0, padded(features) * sizeof(A));
      pending = 0;
    };
    for (int64_t begin = part_begin; begin < part_end; begin += block) {
      const int64_t count = part_end - begin < block ? part_end - begin : block;
      const T* const x = input + begin * stride;
      dots_of(x, stride, count, loss.numel - begin, w, features, A(problem.bias), dots);
      for (int64_t r = 0; r < count; ++r) logits[r] = C(dots[r]);
      row.target = target.row(begin, count);
      row.grad_output = grad_output.row(begin, count);
      row.pos_weight = pos_weight.row(begin, count);
      row.weight = weight.row(begin, count);
      row.mask = mask.row(begin, count);
      run_losses(row, count, output, plain);
      if (has_sum(output)) {
        for (int64_t r = 0; r < count; ++r) loss_sum += double(summands[r]);
      }
      if (output == Output::kLoss) write(out, count, loss.out_dtype, loss.out, begin);
      if (!has_grad) continue;
      for (int64_t r = 0; r < count; ++r) {
        grad_sum += double(out[r]);
        factors[r] = A(out[r]);
      }
      if (grad_weight != nullptr) {
        int64_t r = 0;
        for (; r + 8 <= count; r += 8) add_rows<8>(x + r * stride, stride, factors + r, features, sums);
        for (; r + 4 <= count; r += 4) add_rows<4>(x + r * stride, stride, factors + r, features, sums);
        for (; r < count; ++r) add_rows<1>(x + r * stride, stride, factors + r, features, sums);
        pending += count;
        if (pending >= flush_rows) flush();
      }
      if (problem.grad_input != nullptr) {
        T* const grad_input = static_cast<T*>(problem.grad_input) + begin * features;
        for (int64_t r = 0; r < count; ++r) scale_weight(factors[r], w, features, grad_input + r * features);
      }
    }
    if (pending > 0) flush();
    problem.loss_and_grad_bias[2 * part] = loss_sum;
    problem.loss_and_grad_bias[2 * part + 1] = grad_sum;
  }
}

template <class T, class A>
void run_linear_of(const LinearProblem& problem, int64_t first, int64_t last, Output output, void* scratch) {
  // fp64 targets ask for fp64 losses of fp32 logits
  if (problem.loss.compute_double) {
    return run_parts<T, A, double>(problem, first, last, output, static_cast<A*>(scratch));
  }
  if constexpr (sizeof(A) == sizeof(float)) {
    run_parts<T, A, float>(problem, first, last, output, static_cast<A*>(scratch));
  }
}

void run_linear(const LinearProblem& problem, int64_t first, int64_t last, Output output, void* scratch) {
  switch (problem.input_dtype) {
    case DType::kFloat64:
      return run_linear_of<double, double>(problem, first, last, output, scratch);
    case DType::kFloat16:
      return run_linear_of<Half, float>(problem, first, last, output, scratch);
    case DType::kBFloat16:
      return run_linear_of<BFloat16, float>(problem, first, last, output, scratch);
    default:
      return run_linear_of<float, float>(problem, first, last, output, scratch);
  }
}

}  // namespace
}  // namespace fused_logistic
