// The kernels of a layer with one output and of pairs: the same bits on every instruction set and on several threads.
#pragma once
#include <set>
#include <tuple>

#include "../../csrc/pairs.h"
#include "run.h"

class LayerCheck {
 public:
  explicit LayerCheck(std::vector<const fl::Isa*> isas) : isas_(std::move(isas)) {}

  struct Drawn {
    fl::LinearProblem problem;
    Output output;
    bool any;
  };

  // As linear_bce_single (single.h) and CpuLayer::run (layer.cpp) make it.
  Drawn draw(Output output, DType input, int64_t rows, int64_t features, bool any, Choices& choices) {
    arena_.clear();
    Drawn drawn = {{}, output, any};
    fl::LinearProblem& problem = drawn.problem;
    const bool wide = input == DType::kFloat64;
    const DType dots = wide ? DType::kFloat64 : DType::kFloat32, target = DType(choices.below(9));
    problem.input_dtype = input;
    problem.features = features;
    problem.row_stride = choices.one_in(8) ? 0 : features + int64_t(choices.below(4));
    const int64_t inputs = rows == 0 ? 0 : (rows - 1) * problem.row_stride + features;
    problem.input = filled(Kind::kFeature, input, inputs, any, choices);
    // padded with zeros, on a cache line
    const int64_t padded = fl::padded(features), element = size_of(dots);
    char* const weight = arena_.take(padded * element, 64, choices);
    fill(Kind::kFeature, dots, weight, features, any, choices);
    memset(weight + features * element, 0, (padded - features) * element);
    problem.linear_weight = weight;
    problem.bias = choices.one_in(2) ? 0.25 : 0;
    problem.rows_per_part = choices.one_in(2) ? fl::rows_per_part(rows, features, size_of(input))
                                              : fl::block_rows(features, size_of(input)) * (1 + choices.below(2));
    Problem& loss = problem.loss;
    loss.numel = rows;
    loss.logits = {arena_.untouchable(), input, 1, rows};
    const auto operand = [&](Kind kind, DType dtype) -> Operand {
      const int64_t size = choices.one_in(3) ? 1 : rows;
      return {filled(kind, dtype, size, any, choices), dtype, 1, size};
    };
    loss.target = operand(Kind::kTarget, target);
    loss.compute_double = wide || target == DType::kFloat64;
    if (choices.one_in(3)) loss.weight = operand(Kind::kWeight, DType(choices.below(9)));
    if (choices.one_in(3)) loss.pos_weight = operand(Kind::kWeight, DType(choices.below(9)));
    if (choices.one_in(3)) loss.mask = operand(Kind::kMask, DType::kUInt8);
    if (output == Output::kGradLogits) loss.grad_output = operand(Kind::kFactor, DType(choices.below(4)));
    if (choices.one_in(2)) loss.scale = 1 / double(rows + 1);
    if (choices.one_in(4)) loss.options.label_smoothing = 0.25;
    loss.options.ignore_nan = choices.one_in(4);
    if (choices.one_in(4)) loss.options.has_ignore_index = true, loss.options.ignore_index = 1;
    const int64_t parts = fl::parts_of(problem);
    problem.loss_and_grad_bias = reinterpret_cast<double*>(arena_.take(2 * parts * 8, 8, choices));
    if (output == Output::kLoss) {
      loss.out_dtype = DType(choices.below(4));
      loss.out = arena_.take(rows * size_of(loss.out_dtype), size_of(loss.out_dtype), choices);
    } else if (output != Output::kLossSum) {
      const uint64_t wanted = choices.below(4);
      if (wanted != 1) problem.grad_weight = reinterpret_cast<double*>(arena_.take(parts * features * 8, 8, choices));
      if (wanted != 2) problem.grad_input = arena_.take(rows * features * size_of(input), size_of(input), choices);
    }
    kernels_.insert({int(output), int(input), loss.compute_double, int(fl::terms_of(loss, output))});
    char text[200];
    snprintf(text, sizeof(text),
             "layer: output %d, input dtype %d, %lld rows of %lld, stride %lld, target dtype %d, %lld parts",
             int(output), int(input), (long long)rows, (long long)features, (long long)problem.row_stride, int(target),
             (long long)parts);
    words_ = text;
    return drawn;
  }

  void check(const Drawn& drawn, bool threads) {
    g_case = words_;
    const std::vector<Result> expected = run(drawn, *isas_.back(), false);
    for (const fl::Isa* isa : isas_) {
      g_case = words_ + " on " + isa->name;
      const std::vector<Result> results = run(drawn, *isa, threads);
      for (size_t i = 0; i < results.size(); ++i) expect_same(results[i], expected[i], "layer");
    }
    g_case = words_;
    if (drawn.any) return;
    for (const Result& result : expected) expect_no_nan(result, "layer");
  }
  size_t kernels() const { return kernels_.size(); }
  uint64_t runs() const { return runs_; }

 private:
  const void* filled(Kind kind, DType dtype, int64_t size, bool any, Choices& choices) {
    char* const data = arena_.take(size * size_of(dtype), size_of(dtype), choices);
    fill(kind, dtype, data, size, any, choices);
    return data;
  }

  std::vector<Result> run(const Drawn& drawn, const fl::Isa& isa, bool threads) {
    const fl::LinearProblem& problem = drawn.problem;
    const int64_t parts = fl::parts_of(problem), features = problem.features, rows = problem.loss.numel;
    const size_t element = problem.input_dtype == DType::kFloat64 ? 8 : 4;
    const struct {
      void* data;
      DType dtype;
      int64_t size;
    } written[] = {{problem.loss_and_grad_bias, DType::kFloat64, 2 * parts},
                   {problem.loss.out, problem.loss.out_dtype, rows},
                   {problem.grad_weight, DType::kFloat64, parts * features},
                   {problem.grad_input, problem.input_dtype, rows * features}};
    for (const auto& out : written) {
      if (out.data != nullptr) soil(out.data, out.size * size_of(out.dtype));
    }
    ++runs_;
    on_threads(parts, threads, [&](int64_t first, int64_t last) {
      Arena scratch;
      Random placement{uint64_t(first)};
      isa.linear(problem, first, last, drawn.output, scratch.take(fl::padded(features) * element, 64, placement));
    });
    std::vector<Result> results;
    for (const auto& out : written) {
      if (out.data != nullptr) results.push_back(Result::copy(out.dtype, out.data, out.size));
    }
    return results;
  }

  const std::vector<const fl::Isa*> isas_;
  Arena arena_;
  std::set<std::tuple<int, int, bool, int>> kernels_;
  std::string words_;
  uint64_t runs_ = 0;
};

class PairsCheck {
 public:
  explicit PairsCheck(std::vector<const fl::Isa*> isas) : isas_(std::move(isas)) {}

  struct Drawn {
    fl::Pairs tile;
    bool any;
    std::vector<char> similarities;
  };

  // As pairs_of (pairs_op.h) makes it.
  Drawn draw(DType dtype, int64_t rows, int64_t columns, bool any, Choices& choices) {
    arena_.clear();
    Drawn drawn = {{}, any, {}};
    fl::Pairs& tile = drawn.tile;
    tile.numel = rows * columns;
    tile.dtype = dtype;
    const size_t element = size_of(dtype), bytes = tile.numel * element;
    const auto filled = [&](int64_t size) {
      char* const data = arena_.take(size * element, element, choices);
      fill(Kind::kFactor, dtype, data, size, any, choices);
      return data;
    };
    char* const similarities = filled(tile.numel);
    tile.similarities = similarities;
    tile.scale = filled(1);
    if (choices.one_in(2)) tile.bias = filled(1);
    if (!choices.one_in(4)) {
      tile.positives = fl::diagonal_of(rows, columns, int64_t(choices.below(2 * uint64_t(rows) + 2)) - rows);
    }
    switch (choices.below(3)) {
      case 0:
        break;
      case 1:
        tile.grad = similarities;
        tile.grad_dtype = dtype;
        break;
      default:
        tile.grad_dtype = dtype == DType::kFloat32 ? DType(1 + choices.below(3)) : dtype;
        tile.grad = arena_.take(tile.numel * size_of(tile.grad_dtype), size_of(tile.grad_dtype), choices);
    }
    if (choices.one_in(2)) tile.factor = 1 / double(rows);
    drawn.similarities.assign(similarities, similarities + bytes);
    kernels_.insert({int(dtype), tile.grad != nullptr, int(tile.grad_dtype)});
    char text[200];
    snprintf(text, sizeof(text), "pairs: %lld x %lld of dtype %d, grad dtype %d%s, positives from %u every %u to %u",
             (long long)rows, (long long)columns, int(dtype), int(tile.grad_dtype),
             tile.grad == nullptr             ? " (none)"
             : tile.grad == tile.similarities ? " (in place)"
                                              : "",
             tile.positives.first, tile.positives.step, tile.positives.end);
    words_ = text;
    return drawn;
  }

  void check(const Drawn& drawn, bool threads) {
    g_case = words_;
    const auto expected = run(drawn, *isas_.back(), false);
    for (const fl::Isa* isa : isas_) {
      g_case = words_ + " on " + isa->name;
      const auto results = run(drawn, *isa, threads);
      expect_same(results.first, expected.first, "gradients of pairs");
      expect_same(results.second, expected.second, "sums of pairs");
    }
    g_case = words_;
    if (drawn.any) return;
    expect_no_nan(expected.first, "gradients of pairs");
    expect_no_nan(expected.second, "sums of pairs");
  }
  size_t kernels() const { return kernels_.size(); }
  uint64_t runs() const { return runs_; }

 private:
  std::pair<Result, Result> run(const Drawn& drawn, const fl::Isa& isa, bool threads) {
    const fl::Pairs& tile = drawn.tile;
    const int64_t count = fl::chunks(tile.numel), sums = fl::kPairSums * count;
    Random placement(runs_++);
    if (tile.grad == tile.similarities) {
      memcpy(tile.grad, drawn.similarities.data(), drawn.similarities.size());
    } else if (tile.grad != nullptr) {
      soil(tile.grad, tile.numel * size_of(tile.grad_dtype));
    }
    double* const partials = reinterpret_cast<double*>(sums_.place(sums * 8, 8, placement));
    soil(partials, sums * 8);
    on_threads(count, threads, [&](int64_t first, int64_t last) { isa.pairs(tile, first, last, partials); });
    Result grad;
    if (tile.grad != nullptr) grad = Result::copy(tile.grad_dtype, tile.grad, tile.numel);
    return {grad, Result::copy(DType::kFloat64, partials, sums)};
  }

  const std::vector<const fl::Isa*> isas_;
  Arena arena_;
  GuardedPages sums_;
  std::set<std::tuple<int, bool, int>> kernels_;
  std::string words_;
  uint64_t runs_ = 0;
};
