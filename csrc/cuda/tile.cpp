// The CUDA entry point of a tile of a layer's logits: from tensors to a TileLaunch. As in launch.cpp nothing waits.
#include "tile.h"

#include <torch/csrc/stable/library.h>

#include "../tile_operands.h"
#include "stream.h"

namespace fused_logistic {
namespace {

const char* const kOp = "bce_tile_";

class TensorTile {
 public:
  explicit TensorTile(const Tensor& logits) : logits_(logits) {
    require(logits.dim() == 2 && logits.numel() > 0 && is_floating(logits.scalar_type()), kOp, "logits are no matrix");
    launch.rows = logits.size(0);
    launch.columns = logits.size(1);
    launch.problem.numel = launch.rows * launch.columns;
    launch.problem.logits = {logits.const_data_ptr(), dtype_of(logits.scalar_type()), 1,
                             0};  // one is no constant either
    launch.lies.logits = lie_of(launch.problem.logits, logits.stride(0), launch.columns == 1 ? 1 : logits.stride(1));
  }

  void operand(Operand& operand, Lie& lie, const OptionalTensor& matrix) const {
    if (!matrix.has_value()) return;
    check(*matrix);
    require(matrix->dim() == 2, kOp, "an operand is no matrix");
    const auto broadcasts = [](int64_t size, int64_t expected) { return size == 1 || size == expected; };
    require(broadcasts(matrix->size(0), launch.rows) && broadcasts(matrix->size(1), launch.columns), kOp,
            "an operand does not broadcast to the logits");
    operand = {data_of(*matrix, kOp), dtype_of(matrix->scalar_type()), 1, matrix->numel()};
    lie = lie_of(operand, matrix->size(0) == 1 ? 0 : matrix->stride(0), matrix->size(1) == 1 ? 0 : matrix->stride(1));
  }

  void out(const Tensor& matrix) {
    check(matrix);
    require(matrix.dim() == 2 && matrix.size(0) == launch.rows && matrix.size(1) == launch.columns &&
                (launch.columns == 1 || matrix.stride(1) == 1) && is_floating(matrix.scalar_type()),
            kOp, "logits or losses are no matrix of rows");
    launch.problem.out = matrix.mutable_data_ptr();
    launch.problem.out_dtype = dtype_of(matrix.scalar_type());
    launch.lies.out = lie_of({launch.problem.out, launch.problem.out_dtype, 1, 0}, matrix.stride(0), 1);
  }

  void sparse_target(const Tensor& values, const Tensor& crow_indices, const Tensor& col_indices, int64_t first) {
    for (const Tensor& tensor : {values, crow_indices, col_indices}) {
      check(tensor);
      require(tensor.dim() == 1 && tensor.is_contiguous(), kOp, "a sparse target is not of vectors");
    }
    require(crow_indices.scalar_type() == ScalarType::Long && col_indices.scalar_type() == ScalarType::Long &&
                crow_indices.numel() == launch.rows + 1 && values.numel() == col_indices.numel(),
            kOp, "a sparse target's indices do not fit");
    launch.problem.target = {values.const_data_ptr(), dtype_of(values.scalar_type()), 1, 0};
    launch.crow_indices = static_cast<const int64_t*>(crow_indices.const_data_ptr());
    launch.col_indices = static_cast<const int64_t*>(col_indices.const_data_ptr());
    launch.first_column = first;
  }

  void check(const Tensor& tensor) const {
    require(tensor.device() == logits_.device(), kOp, "an operand is on another device than the logits");
  }

  TileLaunch launch = {};

 private:
  const Tensor& logits_;
};

void tile_cuda(Tensor& logits, FL_TILE_OPERANDS, FL_OPTIONS) {
  TensorTile on(logits);
  TileLaunch& launch = on.launch;
  Problem& problem = launch.problem;
  const Output output = tile_output(losses, loss_sum, wants_grad);
  problem.options = FL_GIVEN_OPTIONS(kOp);
  require(!mask.has_value() || mask->scalar_type() == ScalarType::Bool, kOp, "mask is not bool");
  on.operand(problem.weight, launch.lies.weight, weight);
  on.operand(problem.pos_weight, launch.lies.pos_weight, pos_weight);
  on.operand(problem.mask, launch.lies.mask, mask);
  on.operand(problem.grad_output, launch.lies.grad_output, grad_output);
  if (crow_indices.has_value() && col_indices.has_value()) {
    on.sparse_target(target, *crow_indices, *col_indices, first_label);
  } else {
    on.operand(problem.target, launch.lies.target, target);
  }
  problem.compute_double = logits.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double;
  problem.scale = scale;
  if (has_elements(output)) on.out(losses.has_value() ? *losses : logits);
  if (count.has_value()) {
    on.check(*count);
    require(count->scalar_type() == ScalarType::Double && count->numel() == 1, kOp, "count is not one float64");
    launch.count = static_cast<const double*>(data_of(*count, kOp));
  }
  const TilePlan plan = tile_plan(launch, output);

  const torch::stable::accelerator::DeviceGuard guard(logits.device().index());
  std::optional<Tensor> loss_sums, column_sums;  // freed in stream order
  if (has_sum(output)) {
    on.check(*loss_sum);
    launch.loss_sum = static_cast<double*>(loss_sum->mutable_data_ptr());
    loss_sums = empty_strided({tile_grid(launch)}, {1}, ScalarType::Double, logits.device());
    launch.loss_sums = static_cast<double*>(loss_sums->mutable_data_ptr());
  }
  if (bias_sum.has_value()) {
    on.check(*bias_sum);
    const ScalarType type = bias_sum->scalar_type();
    require(output != Output::kLoss && (type == ScalarType::Double || type == ScalarType::Float) &&
                bias_sum->is_contiguous() && bias_sum->numel() == launch.columns,
            kOp, "bias_sum is not a float64 or float32 for every column of a gradient");
    launch.bias_sum = bias_sum->mutable_data_ptr();
    launch.bias_dtype = dtype_of(type);
    column_sums = empty_strided({launch.row_blocks, launch.columns}, {launch.columns, 1},
                                problem.compute_double ? ScalarType::Double : ScalarType::Float, logits.device());
    launch.column_sums = column_sums->mutable_data_ptr();
  }
  const cudaStream_t stream = current_stream(logits.device());
  launch_tile(launch, plan, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (launch.loss_sum == nullptr && launch.bias_sum == nullptr) return;
  launch_finish_tile(launch, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CUDA, m) { m.impl("bce_tile_", TORCH_BOX(&fused_logistic::tile_cuda)); }
