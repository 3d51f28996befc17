// The ops of the whole layer: schemas, checks, and which computation does what.
#include "linear.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/library.h>

namespace fused_logistic {
namespace {

constexpr const char* kOp = "linear_binary_cross_entropy";

bool has_labels(const LinearArguments& a) { return a.linear_weight.dim() == 2; }

// [..., labels or 1] as a matrix of one row, or of all rows.
Tensor as_matrix(const Tensor& tensor, at::IntArrayRef logits_shape, int64_t rows) {
  const int64_t columns = tensor.dim() == 0 ? 1 : tensor.size(-1);
  if (tensor.numel() == columns) return tensor.reshape({1, columns});
  at::DimVector shape(logits_shape);
  shape.back() = columns;
  return tensor.expand(shape).reshape({rows, columns});
}

at::SymDimVector logits_sizes(const LinearArguments& a) {
  at::SymDimVector shape(a.input.sym_sizes().begin(), a.input.sym_sizes().end());
  shape.pop_back();
  if (has_labels(a)) shape.push_back(a.linear_weight.sym_size(0));
  return shape;
}

bool broadcasts(const OptionalTensor& tensor, at::SymIntArrayRef shape) {
  return !tensor.has_value() || at::is_expandable_to(tensor->sym_sizes(), shape);
}

void check_sparse(const LinearArguments& a, at::SymIntArrayRef logits) {
  const Tensor &crow = *a.crow_indices, &col = a.col_indices.value();
  TORCH_CHECK_VALUE(logits.size() == 2, kOp, ": expected input and linear_weight of 2 dimensions for a sparse target, ",
                    "got ", a.input.sym_sizes(), " and ", a.linear_weight.sym_sizes());
  TORCH_CHECK_VALUE(crow.dim() == 1 && crow.sym_size(0) == logits[0] + 1 && col.dim() == 1 && a.target.dim() == 1 &&
                        a.target.sym_size(0) == col.sym_size(0),
                    kOp, ": expected a sparse target of shape ", logits, " with one value per column index, got ",
                    crow.sym_numel() - 1, " rows, ", col.sym_sizes(), " column indices, ", a.target.sym_sizes(),
                    " values");
}

// torch does not check them unless asked to.
void check_indices(const Tensor& crow, const Tensor& column, int64_t labels) {
  const int64_t count = column.numel();
  TORCH_CHECK_VALUE(
      crow[0].item<int64_t>() == 0 && crow[-1].item<int64_t>() == count && !crow.diff().lt(0).any().item<bool>(), kOp,
      ": expected crow_indices of a sparse target that rise from 0 to ", count, ", got others");
  TORCH_CHECK_VALUE(count == 0 || (column.min().item<int64_t>() >= 0 && column.max().item<int64_t>() < labels), kOp,
                    ": expected column indices of a sparse target in [0, ", labels, "), got others");
}

}  // namespace

void check(const LinearArguments& a) {
  const auto check_dense = [](const char* name, const Tensor& t) {
    TORCH_CHECK_VALUE(t.layout() == at::kStrided, kOp, ": expected ", name, " of layout torch.strided, got ",
                      t.layout());
  };
  const auto type = a.input.scalar_type();
  check_dense("input", a.input);
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
                              kOp, ": expected input of dtype float64, float32, float16 or bfloat16, got ", type);
  TORCH_CHECK_VALUE(a.input.dim() >= 1, kOp, ": expected input of shape [..., features], got []");
  TORCH_CHECK_VALUE(a.linear_weight.dim() == 1 || a.linear_weight.dim() == 2, kOp,
                    ": expected linear_weight of shape [labels, features] or [features], got ",
                    a.linear_weight.sym_sizes());
  TORCH_CHECK_VALUE(a.input.sym_size(-1) == a.linear_weight.sym_size(-1), kOp, ": expected input of ",
                    a.linear_weight.sym_size(-1), " features (linear_weight is ", a.linear_weight.sym_sizes(),
                    "), got ", a.input.sym_sizes());
  const auto check_like_input = [&](const char* name, const Tensor& t) {
    check_dense(name, t);
    TORCH_CHECK_TYPE(t.scalar_type() == type, kOp, ": expected ", name, " of the input's dtype ", type, ", got ",
                     t.scalar_type());
    TORCH_CHECK(t.device() == a.input.device(), kOp, ": expected ", name, " on ", a.input.device(), ", got ",
                t.device());
  };
  check_like_input("linear_weight", a.linear_weight);
  if (a.linear_bias.has_value()) {
    const Tensor& bias = *a.linear_bias;
    check_like_input("linear_bias", bias);
    TORCH_CHECK_VALUE(has_labels(a) ? bias.dim() == 1 && bias.sym_size(0) == a.linear_weight.sym_size(0)
                                    : bias.dim() <= 1 && bias.sym_numel() == 1,
                      kOp, ": expected linear_bias of shape ",
                      has_labels(a) ? "[" + c10::str(a.linear_weight.sym_size(0)) + "]" : "[1] or []", ", got ",
                      bias.sym_sizes());
  }
  const at::SymDimVector logits = logits_sizes(a);
  if (a.sparse()) {
    check_sparse(a, logits);
  } else {
    TORCH_CHECK_VALUE(a.target.sym_sizes() == at::SymIntArrayRef(logits), kOp, ": expected target of shape ",
                      at::SymIntArrayRef(logits), ", got ", a.target.sym_sizes());
  }
  dtype_of(a.target.scalar_type());  // or an error, even where there is nothing to read
  TORCH_CHECK(a.target.device() == a.input.device(), kOp, ": expected target on ", a.input.device(), ", got ",
              a.target.device());
  for (const auto& [name, tensor] : {std::pair("weight", &a.weight), std::pair("pos_weight", &a.pos_weight)}) {
    if (tensor->has_value()) check_dense(name, **tensor);
    TORCH_CHECK(broadcasts(*tensor, logits), kOp, ": expected ", name, " of a shape that broadcasts to ",
                at::SymIntArrayRef(logits), ", got ", (*tensor)->sym_sizes());
    TORCH_CHECK(!tensor->has_value() || (*tensor)->device() == a.input.device(), kOp, ": expected ", name, " on ",
                a.input.device(), ", got ", (*tensor)->device());
  }
  TORCH_CHECK_VALUE(a.reduction >= at::Reduction::None && a.reduction <= at::Reduction::Sum, kOp,
                    ": expected reduction 0 (none), 1 (mean) or 2 (sum), got ", a.reduction);
  TORCH_CHECK_VALUE(a.label_smoothing >= 0 && a.label_smoothing <= 1, kOp,
                    ": expected label_smoothing between 0 and 1, got ", a.label_smoothing);
  TORCH_CHECK_VALUE(a.chunk_bytes.value_or(1) > 0, kOp, ": expected chunk_bytes > 0, got ", a.chunk_bytes.value_or(1));
}

at::ScalarType loss_dtype(const LinearArguments& a) {
  return a.dtype.has_value()                          ? *a.dtype
         : at::isFloatingType(a.target.scalar_type()) ? a.target.scalar_type()
                                                      : a.input.scalar_type();
}

Layer::Layer(const LinearArguments& a, const OptionalTensor& grad_out) : arguments(a) {
  check(a);
  const bool many = has_labels(a);
  features = a.linear_weight.size(-1);
  labels = many ? a.linear_weight.size(0) : 1;
  logits_shape.assign(a.input.sizes().begin(), a.input.sizes().end() - 1);
  rows = c10::multiply_integers(logits_shape);
  if (many) logits_shape.push_back(labels);
  at::DimVector shape = logits_shape;  // with labels, whether the logits have them or not
  if (!many) shape.push_back(1);
  const auto matrix = [&](const Tensor& t) {
    return as_matrix(many || t.dim() == 0 ? t : t.unsqueeze(-1), shape, rows);
  };
  const auto optional = [&](const OptionalTensor& t) {
    return t.has_value() ? OptionalTensor(matrix(*t)) : std::nullopt;
  };
  input = a.input.reshape({rows, features});
  linear_weight = many ? a.linear_weight : a.linear_weight.unsqueeze(0);
  if (a.linear_bias.has_value()) bias = a.linear_bias->reshape({labels});
  sparse = a.sparse() && labels != 1;
  if (sparse) {
    check_indices(*a.crow_indices, *a.col_indices, labels);
    target = a.target;
  } else if (a.sparse()) {
    target = dense_target(a);  // one column is as small as the sparse one
  } else {
    target = a.target.reshape({rows, labels});
  }
  weight = optional(a.weight);
  pos_weight = optional(a.pos_weight);
  grad_output = optional(grad_out);
}

Positives::Positives(const LinearArguments& a, int64_t rows, int64_t labels) {
  const Tensor crow = a.crow_indices->to(at::kLong);
  const Tensor counts = crow.diff();
  const int64_t count = a.col_indices->numel();
  column = a.col_indices->to(at::kLong);
  value = a.target;
  row = at::repeat_interleave(at::arange(rows, crow.options()), counts, 0, count);
  const Tensor place = row * labels + column;
  if (count < 2 || place.diff().gt(0).all().item<bool>()) return;
  const auto [sorted, inverse, _] = at::_unique2(place, /*sorted=*/true, /*return_inverse=*/true);
  value = at::zeros({sorted.numel()}, value.options()).index_add_(0, inverse, value);
  row = at::floor_divide(sorted, labels);
  column = sorted - row * labels;
}

double mean_count(const Layer& layer, const Positives* positives) {
  const LinearArguments& a = layer.arguments;
  if (a.reduction != at::Reduction::Mean) return 1;
  const double all = double(layer.rows) * double(layer.labels);
  if (!a.ignore_index.has_value() || !holds(a.target.scalar_type(), *a.ignore_index)) return all;
  const at::Scalar ignored(*a.ignore_index);
  if (positives != nullptr) {
    if (*a.ignore_index == 0) return double(positives->value.ne(0).sum().item<int64_t>());
    return all - double(positives->value.eq(ignored).sum().item<int64_t>());
  }
  // some rows at a time: the comparison is a tensor too
  const int64_t rows = std::max<int64_t>(default_chunk_bytes(layer.input) / std::max<int64_t>(layer.labels, 1), 1);
  int64_t count = 0;
  for (int64_t row = 0; row < layer.rows; row += rows) {
    count += layer.target.narrow(0, row, std::min(rows, layer.rows - row)).ne(ignored).sum().item<int64_t>();
  }
  return double(count);
}

Tensor dense_target(const LinearArguments& a) {
  if (!a.sparse()) return a.target;
  const int64_t rows = a.input.size(0), labels = a.linear_weight.size(0), count = a.col_indices->numel();
  check_indices(*a.crow_indices, *a.col_indices, labels);
  const Tensor row = at::repeat_interleave(at::arange(rows, a.crow_indices->options().dtype(at::kLong)),
                                           a.crow_indices->diff(), 0, count);
  const Tensor place = row * labels + a.col_indices->to(at::kLong);
  return at::zeros({rows * labels}, a.target.options()).index_add(0, place, a.target).view({rows, labels});
}

namespace {

LinearResult compute(const LinearArguments& a, const OptionalTensor& grad_output, GradMask mask) {
  mask[2] = mask[2] && a.linear_bias.has_value();
  const Layer layer(a, grad_output);
  LinearResult result = a.input.is_cpu() && layer.labels == 1 ? single_output(layer, mask) : chunked(layer, mask);
  if (!grad_output.has_value()) {
    if (a.reduction == at::Reduction::None) result.loss = result.loss.reshape(layer.logits_shape);
    result.loss = result.loss.to(loss_dtype(a));
  }
  const auto finish = [&](Tensor& grad, const Tensor& like, bool wanted) {
    grad = wanted ? grad.reshape(like.sizes()) : at::empty({0}, a.input.options());
  };
  finish(result.grad_input, a.input, mask[0]);
  finish(result.grad_weight, a.linear_weight, mask[1]);
  finish(result.grad_bias, mask[2] ? *a.linear_bias : a.input, mask[2]);
  return result;
}

Tensor linear_bce(FL_LINEAR_PARAMETERS) {
  return compute({FL_LINEAR_ARGUMENTS}, std::nullopt, {false, false, false}).loss;
}
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bce_with_grad(FL_LINEAR_PARAMETERS, GradMask output_mask) {
  check_reduced("linear_bce_with_grad", reduction);
  LinearResult r = compute({FL_LINEAR_ARGUMENTS}, std::nullopt, output_mask);
  return {r.loss, r.grad_input, r.grad_weight, r.grad_bias};
}
std::tuple<Tensor, Tensor, Tensor> linear_bce_backward(const Tensor& grad_output, FL_LINEAR_PARAMETERS,
                                                       GradMask output_mask) {
  LinearResult r = compute({FL_LINEAR_ARGUMENTS}, grad_output, output_mask);
  return {r.grad_input, r.grad_weight, r.grad_bias};
}

}  // namespace
}  // namespace fused_logistic

// A sparse target [rows, labels] comes as its values and indices; gradients that output_mask leaves out are empty.
#define FL_LINEAR_SCHEMA                                                                                       \
  "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? crow_indices, Tensor? "     \
  "col_indices, Tensor? weight, Tensor? pos_weight, int reduction, float label_smoothing, int? ignore_index, " \
  "int? chunk_bytes, ScalarType? dtype"

TORCH_LIBRARY_FRAGMENT(fused_logistic, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("linear_bce(" FL_LINEAR_SCHEMA ") -> Tensor", tags);
  m.def("linear_bce_with_grad(" FL_LINEAR_SCHEMA
        ", bool[3] output_mask) -> (Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
        tags);
  m.def("linear_bce_backward(Tensor grad_output, " FL_LINEAR_SCHEMA
        ", bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
        tags);
}
TORCH_LIBRARY_IMPL(fused_logistic, CompositeExplicitAutograd, m) {
  m.impl("linear_bce", &fused_logistic::linear_bce);
  m.impl("linear_bce_with_grad", &fused_logistic::linear_bce_with_grad);
  m.impl("linear_bce_backward", &fused_logistic::linear_bce_backward);
}
