// What the ops compute, once for every backend. A Backend runs a kernel's output over a whole problem and makes tensors:
//
//   explicit Backend(const Tensor& logits)        makes the device that it is on the current one
//   Tensor empty(sizes, strides, dtype)           an elementwise result
//   bool is_made(made_for, grad_output)           whether a gradient made for the one is seen to be that for the other
//                                                 without waiting for the device
//   void run(problem, output, mean, result, made_for = null)
//                                                 mean: what a sum is divided by, and a gradient; result: null, or the scalar
//                                                 tensor of an output that has a sum; made_for: the output already holds
//                                                 the gradient for this grad_output
#pragma once
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "tensors.h"

namespace fused_logistic {

// A mean's divisor: *count where that is given, a number on the device, else value.
struct Mean {
  const double* count = nullptr;
  double value = 1;
};

template <class Backend>
struct Ops {
  static Tensor bce(FL_OPERANDS, int64_t reduction, ScalarType dtype, FL_OPTIONS) {
    const Backend backend(logits);
    TensorProblem on("bce", FL_GIVEN_OPERANDS, FL_GIVEN_OPTIONS("bce"));
    if (reduction == kNone) {
      const Tensor loss = allocate_out(backend, on, dtype);
      backend.run(on.problem, Output::kLoss, {}, nullptr);
      return loss;
    }
    const Tensor loss = empty_scalar(dtype, logits);
    backend.run(on.problem, Output::kLossSum, mean(on, count, reduction), &loss);
    return loss;
  }

  static std::tuple<Tensor, Tensor> bce_with_grad(FL_OPERANDS, int64_t reduction, ScalarType dtype, FL_OPTIONS) {
    return with_grad("bce_with_grad", nullptr, FL_GIVEN_OPERANDS, reduction, dtype, FL_GIVEN_OPTIONS("bce_with_grad"));
  }

  static std::tuple<Tensor, Tensor> bce_with_grad_for(const Tensor& grad_output, FL_OPERANDS, int64_t reduction,
                                                      ScalarType dtype, FL_OPTIONS) {
    return with_grad("bce_with_grad_for", &grad_output, FL_GIVEN_OPERANDS, reduction, dtype,
                     FL_GIVEN_OPTIONS("bce_with_grad_for"));
  }

  static Tensor bce_backward(const Tensor& grad_output, FL_OPERANDS, int64_t reduction, int64_t wrt, FL_OPTIONS) {
    const Backend backend(logits);
    TensorProblem on("bce_backward", FL_GIVEN_OPERANDS, FL_GIVEN_OPTIONS("bce_backward"));
    on.set_grad_output(grad_output);
    const auto [output, operand] = derivative(FL_GIVEN_OPERANDS, Wrt(wrt));
    const Tensor grad = allocate_out(backend, on, operand->scalar_type());
    backend.run(on.problem, output, mean(on, count, reduction), nullptr);
    return grad;
  }

  static void bce_backward_(Tensor& grad_logits, const Tensor& grad_output, const OptionalTensor& made_for, FL_OPERANDS,
                            int64_t reduction, FL_OPTIONS) {
    const Backend backend(logits);
    const auto sizes = grad_logits.sizes(), shape = logits.sizes();
    require(sizes.size() == shape.size() && std::equal(sizes.begin(), sizes.end(), shape.begin()) &&
                grad_logits.scalar_type() == logits.scalar_type() && grad_logits.device() == logits.device(),
            "bce_backward_", "grad_logits is not like the logits");
    require(grad_output.device() == logits.device() && grad_output.numel() == 1, "bce_backward_",
            "grad_output is not one number on the logits' device");
    require(!made_for.has_value() || (made_for->device() == logits.device() && made_for->numel() == 1), "bce_backward_",
            "made_for is not one number on the logits' device");
    if (backend.is_made(made_for, grad_output)) return;
    TensorProblem on("bce_backward_", FL_GIVEN_OPERANDS, FL_GIVEN_OPTIONS("bce_backward_"));
    Operand made;  // for 1, if there is none
    if (made_for.has_value()) {
      on.set_grad_output(*made_for);
      made = on.problem.grad_output;
    }
    on.set_grad_output(grad_output);
    const auto mine = grad_logits.strides(), expected = on.strides();
    require(mine.size() == expected.size() && std::equal(mine.begin(), mine.end(), expected.begin()), "bce_backward_",
            "grad_logits is not what bce_with_grad made for these logits");
    on.set_out(grad_logits);
    backend.run(on.problem, Output::kGradLogits, mean(on, count, reduction), nullptr, &made);
  }

  static Tensor bce_count(const Tensor& target, const OptionalTensor& mask, std::optional<int64_t> ignore_index,
                          bool ignore_nan) {
    const Backend backend(target);
    const Tensor count = empty_scalar(ScalarType::Double, target);
    TensorProblem on("bce_count", target, mask, leaving_out(ignore_index, ignore_nan));
    backend.run(on.problem, Output::kCount, {}, &count);
    return count;
  }

 private:
  // The gradient is that for *grad_output, one number; null: for 1.
  static std::tuple<Tensor, Tensor> with_grad(const char* op, const Tensor* grad_output, const Operands& given,
                                              int64_t reduction, ScalarType dtype, const Options& options) {
    require(reduction != kNone, op, "reduction is neither 1 (mean) nor 2 (sum)");
    const Backend backend(given.logits);
    TensorProblem on(op, given, options);
    if (grad_output != nullptr) {
      require(grad_output->numel() == 1, op, "grad_output is not one number");
      on.set_grad_output(*grad_output);
    }
    const Tensor grad = allocate_out(backend, on, given.logits.scalar_type()), loss = empty_scalar(dtype, given.logits);
    backend.run(on.problem, Output::kLossSumAndGrad, mean(on, given.count, reduction), &loss);
    return {loss, grad};
  }

  static Tensor allocate_out(const Backend& backend, TensorProblem& on, ScalarType dtype) {
    const Tensor out = backend.empty(on.sizes(), on.strides(), dtype);
    on.set_out(out);
    return out;
  }

  static Mean mean(const TensorProblem& on, const OptionalTensor& count, int64_t reduction) {
    require(reduction >= kNone && reduction <= kSum, on.op(), "reduction is not 0 (none), 1 (mean) or 2 (sum)");
    if (reduction != kMean) return {};
    if (count.has_value()) return {static_cast<const double*>(data_of(*count, on.op()))};
    require(on.problem.mask.data == nullptr && !leaves_out(on.problem.options), on.op(),
            "a mean over some of the elements needs their count");
    return {nullptr, double(on.problem.numel)};
  }

  // The kernels' output that is the derivative with respect to an operand, and the operand, whose dtype it takes.
  static std::pair<Output, const Tensor*> derivative(const Operands& of, Wrt wrt) {
    switch (wrt) {
      case Wrt::kLogits:
        return {Output::kGradLogits, &of.logits};
      case Wrt::kTarget:
        return {Output::kGradTarget, &of.target};
      case Wrt::kWeight:
        return {Output::kGradWeight, &of.weight.value()};
      case Wrt::kPosWeight:
        return {Output::kGradPosWeight, &of.pos_weight.value()};
    }
    refuse("bce_backward", "wrt is not between 0 and 3");
  }
};

}  // namespace fused_logistic
