// linear_bce_single, once for every backend: a layer with one output, its loss and all gradients in one pass over its input
// (linear.h). A Backend makes tensors and computes:
//
//   explicit Backend(const Tensor& input)         makes the device that it is on the current one
//   Tensor empty(sizes, strides, dtype)
//   void run(problem, output, linear_weight, linear_bias, mean, results)
//                                                 the problem's sums, linear_weight and bias are the backend's business;
//                                                 results: what is not asked for is null
#pragma once
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "linear.h"
#include "ops.h"

namespace fused_logistic {

struct SingleResults {
  const Tensor* loss = nullptr;  // a scalar
  const Tensor* grad_weight = nullptr;
  const Tensor* grad_bias = nullptr;
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bce_single(
    const Tensor& given_input, const Tensor& linear_weight, const OptionalTensor& linear_bias, const Tensor& target,
    const OptionalTensor& weight, const OptionalTensor& pos_weight, const OptionalTensor& mask,
    const OptionalTensor& grad_output, const OptionalTensor& count, int64_t reduction, ScalarType dtype,
    std::vector<bool> wanted, FL_OPTIONS) {
  const char* const op = "linear_bce_single";
  const Backend backend(given_input);
  const ScalarType type = given_input.scalar_type();
  const auto is_like_input = [&](const Tensor& tensor) {
    return tensor.scalar_type() == type && tensor.device() == given_input.device();
  };
  require(given_input.dim() == 2 && linear_weight.dim() == 1 && given_input.size(1) == linear_weight.size(0) &&
              is_like_input(linear_weight) && wanted.size() == 3 &&
              (!linear_bias.has_value() || (linear_bias->numel() == 1 && is_like_input(*linear_bias))),
          op, "input, linear_weight and linear_bias do not fit together");
  const int64_t n = given_input.size(0), features = given_input.size(1);
  const bool has_loss = !grad_output.has_value(), has_grad = wanted[0] || wanted[1] || wanted[2];
  const bool elements = has_loss && reduction == kNone;
  require(reduction >= kNone && reduction <= kSum && !(elements && has_grad), op,
          "reduction is not 1 (mean) or 2 (sum), or 0 (none) without gradients");
  const Tensor logits = backend.empty({n}, {1}, type);  // never touched: the shape of the losses
  TensorProblem on(op, {logits, target, weight, pos_weight, mask, count}, FL_GIVEN_OPTIONS(op));
  require(on.problem.options.loss == Loss::kBce, op, "there is no focal loss of one output");
  require(on.problem.target.classes == 0, op, "target is not of the logits' shape");
  if (!has_loss) on.set_grad_output(*grad_output);
  Mean mean = {nullptr, reduction == kMean ? double(n) : 1};
  if (reduction == kMean && count.has_value()) mean.count = static_cast<const double*>(data_of(*count, op));

  const Tensor absent = backend.empty({0}, {1}, type);
  Tensor loss = absent, grad_input = absent, grad_weight = absent, grad_bias = absent;
  SingleResults results;
  Output output = has_loss ? (has_grad ? Output::kLossSumAndGrad : Output::kLossSum) : Output::kGradLogits;
  if (elements) {
    loss = backend.empty({n}, {1}, dtype);
    on.set_out(loss);
    output = Output::kLoss;
  } else if (has_loss) {
    loss = empty_scalar(dtype, given_input);
    results.loss = &loss;
  }
  const Tensor input =
      given_input.stride(1) == 1 || features <= 1 ? given_input : torch::stable::contiguous(given_input);
  LinearProblem problem;
  problem.loss = on.problem;
  problem.input = input.const_data_ptr();
  problem.input_dtype = dtype_of(type);
  problem.features = features;
  problem.row_stride = input.stride(0);
  problem.rows_per_part = rows_per_part(n, features, int64_t(input.element_size()));
  if (wanted[0]) {
    grad_input = backend.empty({n, features}, {features, 1}, type);
    problem.grad_input = grad_input.mutable_data_ptr();
  }
  if (wanted[1]) {
    grad_weight = backend.empty({features}, {1}, type);
    results.grad_weight = &grad_weight;
  }
  if (wanted[2] && linear_bias.has_value()) {
    grad_bias = backend.empty({1}, {1}, type);
    results.grad_bias = &grad_bias;
  }
  backend.run(problem, output, linear_weight, linear_bias, mean, results);
  return {loss, grad_input, grad_weight, grad_bias};
}

}  // namespace fused_logistic
