#include "iteration.h"

#include <ATen/DimVector.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <numeric>

#include "cpu/memory.h"

namespace fused_logistic {
namespace {

constexpr double kMaxGamma = 1e30;  // in fp32 its product with the logarithm of a probability is still finite

// The op as the user knows it.
const char* name(const Arguments& a) {
  return a.gamma.has_value() ? "sigmoid_focal_loss" : "binary_cross_entropy_with_logits";
}

}  // namespace

DType dtype_of(at::ScalarType type, const char* op) {
  switch (type) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kBool:
    case at::kByte:
      return DType::kUInt8;
    case at::kChar:
      return DType::kInt8;
    case at::kShort:
      return DType::kInt16;
    case at::kInt:
      return DType::kInt32;
    case at::kLong:
      return DType::kInt64;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false, op, ": expected a floating point, integer or bool tensor, got ", type);
  }
}

namespace {

bool is_floating(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

void check_layout(const char* op, const char* name, const Tensor& tensor, const char* hint) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided, op, ": expected ", name,
                              " of layout torch.strided, got ", tensor.layout(), hint);
}

void check_operand(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& logits) {
  if (!tensor.has_value()) return;
  check_layout(op, name, *tensor, "");
  TORCH_CHECK(tensor->device() == logits.device(), op, ": expected ", name, " on ", logits.device(), ", got ",
              tensor->device());
  TORCH_CHECK(at::is_expandable_to(tensor->sym_sizes(), logits.sym_sizes()), op, ": expected ", name,
              " of a shape that broadcasts to ", logits.sym_sizes(), ", got ", tensor->sym_sizes());
}

}  // namespace

void check(const Arguments& a) {
  const char* const op = name(a);
  TORCH_CHECK_NOT_IMPLEMENTED(is_floating(a.logits.scalar_type()), op,
                              ": expected logits of dtype float64, float32, float16 or bfloat16, got ",
                              a.logits.scalar_type());
  check_layout(op, "logits", a.logits, "");
  check_layout(op, "target", a.target, "; linear_binary_cross_entropy takes sparse targets");
  TORCH_CHECK_VALUE(a.target.sym_sizes() == a.logits.sym_sizes(), op, ": expected target of shape ",
                    a.logits.sym_sizes(), ", got ", a.target.sym_sizes());
  TORCH_CHECK(a.target.device() == a.logits.device(), op, ": expected target on ", a.logits.device(), ", got ",
              a.target.device());
  TORCH_CHECK_VALUE(a.reduction >= at::Reduction::None && a.reduction <= at::Reduction::Sum, op,
                    ": expected reduction 0 (none), 1 (mean) or 2 (sum), got ", a.reduction);
  TORCH_CHECK_VALUE(a.label_smoothing >= 0 && a.label_smoothing <= 1, op,
                    ": expected label_smoothing between 0 and 1, got ", a.label_smoothing);
  check_operand(op, "weight", a.weight, a.logits);
  check_operand(op, "pos_weight", a.pos_weight, a.logits);
  check_operand(op, "mask", a.mask, a.logits);
  TORCH_CHECK_TYPE(!a.mask.has_value() || a.mask->scalar_type() == at::kBool, op, ": expected mask of dtype bool, got ",
                   a.mask->scalar_type());
  TORCH_CHECK_VALUE(!a.gamma.has_value() || (*a.gamma >= 0 && *a.gamma <= kMaxGamma), op,
                    ": expected gamma between 0 and ", kMaxGamma, ", got ", *a.gamma);
  TORCH_CHECK_VALUE(!a.alpha.has_value() || (*a.alpha >= 0 && *a.alpha <= 1 && a.gamma.has_value()), op,
                    ": expected alpha between 0 and 1, and gamma with it, got alpha ", *a.alpha);
}

void check_reduced(const char* op, int64_t reduction) {
  TORCH_CHECK_VALUE(reduction == at::Reduction::Mean || reduction == at::Reduction::Sum, op,
                    ": expected reduction 1 (mean) or 2 (sum), got ", reduction);
}

std::pair<Output, const Tensor&> derivative(const Arguments& a, int64_t wrt) {
  switch (Wrt(wrt)) {
    case Wrt::kLogits:
      return {Output::kGradLogits, a.logits};
    case Wrt::kTarget:
      return {Output::kGradTarget, a.target};
    case Wrt::kWeight:
      return {Output::kGradWeight, a.weight.value()};
    case Wrt::kPosWeight:
      return {Output::kGradPosWeight, a.pos_weight.value()};
  }
  TORCH_CHECK_VALUE(false, "bce_backward: expected wrt between 0 and 3, got ", wrt);
}

bool holds(at::ScalarType type, int64_t value) {
  if (!at::isIntegralType(type, /*includeBool=*/false) || type == at::kLong) return true;
  const int64_t bits = 8 * int64_t(c10::elementSize(type)), half = int64_t(1) << (bits - 1);
  return type == at::kByte ? value >= 0 && value < 2 * half : value >= -half && value < half;
}

at::ScalarType loss_dtype(const Arguments& a, DTypeArgument dtype) {
  if (dtype.has_value()) return *dtype;
  return is_floating(a.target.scalar_type()) ? a.target.scalar_type() : a.logits.scalar_type();
}

Iteration::Iteration(const Arguments& a) : op_(name(a)) {
  check(a);
  logits_ = a.logits.is_non_overlapping_and_dense() ? a.logits : a.logits.clone();
  contiguous_ = logits_.is_contiguous();
  if (!contiguous_) {
    order_.resize(logits_.dim());
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t i, int64_t j) { return logits_.stride(i) > logits_.stride(j); });
  }
  problem.numel = logits_.numel();
  problem.logits = {logits_.const_data_ptr(), dtype_of(logits_.scalar_type()), 1, problem.numel};
  problem.target = operand(a.target);
  if (a.weight.has_value()) problem.weight = operand(*a.weight);
  if (a.pos_weight.has_value()) problem.pos_weight = operand(*a.pos_weight);
  if (a.mask.has_value()) problem.mask = operand(*a.mask);
  problem.compute_double = logits_.scalar_type() == at::kDouble || a.target.scalar_type() == at::kDouble;
  problem.options = {
      a.label_smoothing,
      a.ignore_index.has_value(),
      double(a.ignore_index.value_or(0)),
      a.gamma.has_value() ? Loss::kFocal : Loss::kBce,
      a.gamma.value_or(0),
      a.alpha.value_or(1),
      a.alpha.has_value() ? 1 - *a.alpha : 1,
  };
}

void Iteration::set_grad_output(const Tensor& grad_output) {
  TORCH_CHECK(at::is_expandable_to(grad_output.sizes(), logits_.sizes()), "bce_backward: expected grad_output of a ",
              "shape that broadcasts to ", logits_.sizes(), ", got ", grad_output.sizes());
  problem.grad_output = operand(grad_output);
}

Tensor Iteration::allocate_out(at::ScalarType dtype) {
  Tensor out =
      logits_.is_cpu() ? empty_like_cpu(logits_, dtype) : at::empty_like(logits_, logits_.options().dtype(dtype));
  problem.out = out.mutable_data_ptr();
  problem.out_dtype = dtype_of(dtype);
  return out;
}

Tensor Iteration::in_order(const Tensor& tensor) const {
  const Tensor expanded = tensor.expand(logits_.sizes());
  return contiguous_ ? expanded : expanded.permute(order_);
}

Operand Iteration::operand(const Tensor& tensor) {
  const DType dtype = dtype_of(tensor.scalar_type(), op_);
  if (tensor.numel() == 1) return {tensor.const_data_ptr(), dtype, 1, 1};
  if (contiguous_ && tensor.is_contiguous() && tensor.sizes() == logits_.sizes()) {
    return {tensor.const_data_ptr(), dtype, 1, problem.numel};
  }
  // From the fastest dimension on: some over which the tensor is constant, then some along which it is dense, then
  // some over which it repeats.
  const Tensor expanded = in_order(tensor);
  int64_t inner = 1, size = 1, d = expanded.dim() - 1;
  for (; d >= 0 && (expanded.stride(d) == 0 || expanded.size(d) == 1); --d) inner *= expanded.size(d);
  for (; d >= 0 && (expanded.stride(d) == size || expanded.size(d) == 1); --d) size *= expanded.size(d);
  for (; d >= 0 && (expanded.stride(d) == 0 || expanded.size(d) == 1); --d) {
  }
  if (d < 0) return {tensor.const_data_ptr(), dtype, inner, size};
  // Strided memory: copy the tensor as small as it is, then look again. What varies along two groups of dimensions
  // with a broadcast one between them is copied in full.
  Tensor small = tensor;
  for (int64_t i = 0; i < small.dim(); ++i) {
    if (small.stride(i) == 0) small = small.narrow(i, 0, 1);
  }
  if (!small.is_contiguous()) {
    owned_.push_back(small.contiguous());
    return operand(owned_.back());
  }
  const Tensor full = in_order(tensor).contiguous();
  owned_.push_back(full);
  return {full.const_data_ptr(), dtype, 1, problem.numel};
}

}  // namespace fused_logistic
