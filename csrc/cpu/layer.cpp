// The CPU entry points of the layer: the losses of a tile of its logits, in place; and a layer with one output, z = x w + b,
// its loss and all gradients in one pass over x (linear_kernel.h). Everything around them is fused_logistic/layer.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../single.h"
#include "../tile_operands.h"
#include "kernels.h"
#include "launch.h"

namespace fused_logistic {
namespace {

// ---- A tile of the logits ----------------------------------------------------------------------------------------

// An operand of one row of a matrix, and how many bytes further the next row's lies.
struct RowOperand {
  Operand operand;
  int64_t step = 0;

  Operand at(int64_t row) const {
    Operand result = operand;
    if (result.data != nullptr) result.data = static_cast<const char*>(result.data) + row * step;
    return result;
  }
};

// A block of columns of some larger matrix: its rows are dense while it is not, so each row is a problem of its own.
struct Rows {
  Problem first;
  int64_t rows = 0;
  RowOperand logits, target, weight, pos_weight, mask, grad_output;
  int64_t out_step = 0;

  Problem operator[](int64_t row) const {
    Problem problem = first;
    problem.logits = logits.at(row);
    problem.target = target.at(row);
    problem.weight = weight.at(row);
    problem.pos_weight = pos_weight.at(row);
    problem.mask = mask.at(row);
    problem.grad_output = grad_output.at(row);
    if (problem.out != nullptr) problem.out = static_cast<char*>(problem.out) + row * out_step;
    return problem;
  }
};

// The result is that of run for each row, added up in order.
double run_rows(const Rows& rows, Output output) {
  const int64_t per_row = chunks(rows.first.numel), count = rows.rows * per_row;
  std::vector<double> partials(has_sum(output) ? count : 0);
  ChunkKernel* const kernel = isa().kernel;
  torch::stable::parallel_for(0, count, /*grain_size=*/2, [&](int64_t begin, int64_t end) {
    in_float_mode([&] {
      while (begin < end) {
        const int64_t row = begin / per_row, first = begin % per_row, last = std::min(per_row, first + end - begin);
        kernel(rows[row], first, last, output, has_sum(output) ? partials.data() + row * per_row : nullptr);
        begin += last - first;
      }
    });
  });
  double sum = 0;
  if (has_sum(output)) in_float_mode([&] { sum = ordered_sum(partials.data(), count); });
  return sum;
}

// One row of a matrix or, where there is only one, that one for all rows.
class RowOperands {
 public:
  RowOperands(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {}

  RowOperand operator()(const OptionalTensor& given) {
    if (!given.has_value()) return {};
    Tensor matrix = *given;
    require(matrix.dim() == 2 && (matrix.size(0) == 1 || matrix.size(0) == rows_) &&
                (matrix.size(1) == 1 || matrix.size(1) == columns_),
            "bce_tile_", "an operand does not broadcast to the logits");
    if (matrix.size(1) > 1 && matrix.stride(1) > 1) owned_.push_back(matrix = torch::stable::contiguous(matrix));
    const bool constant = matrix.size(1) == 1 || matrix.stride(1) == 0;
    return {{data_of(matrix, "bce_tile_"), dtype_of(matrix.scalar_type()), 1, constant ? 1 : columns_},
            matrix.size(0) == 1 ? 0 : matrix.stride(0) * int64_t(matrix.element_size())};
  }

 private:
  const int64_t rows_, columns_;
  std::vector<Tensor> owned_;
};

Tensor first_row(const Tensor& matrix) {
  Tensor self = matrix;
  return torch::stable::narrow(self, 0, 0, 1);
}

void tile_cpu(Tensor& logits, FL_TILE_OPERANDS, FL_OPTIONS) {
  require(logits.dim() == 2 && logits.is_contiguous() && logits.numel() > 0, "bce_tile_", "logits are no whole matrix");
  require(!bias_sum.has_value() && !crow_indices.has_value() && !col_indices.has_value() && !count.has_value(),
          "bce_tile_", "bias_sum, indices and count are for other devices");
  const Output output = tile_output(losses, loss_sum, wants_grad);
  const Tensor& out = losses.has_value() ? *losses : logits;
  require(out.dim() == 2 && out.size(0) == logits.size(0) && out.size(1) == logits.size(1) &&
              (out.size(1) == 1 || out.stride(1) == 1) && (!whole || out.is_contiguous()) && target.dim() == 2,
          "bce_tile_", "losses or target do not fit to the logits");
  // Of a block of columns only the first row is laid out, so that nothing is copied.
  const auto part = [&](const OptionalTensor& t) -> OptionalTensor {
    return whole || !t.has_value() || t->size(0) == 1 ? t : first_row(*t);
  };
  TensorProblem on("bce_tile_", {*part(logits), *part(target), part(weight), part(pos_weight), part(mask), {}},
                   FL_GIVEN_OPTIONS("bce_tile_"));
  if (grad_output.has_value()) on.set_grad_output(*part(grad_output));
  on.set_out(out);
  on.problem.scale = scale;
  double loss = 0;
  if (whole) {
    loss = run(on.problem, output);
  } else {
    RowOperands row(logits.size(0), logits.size(1));
    const Rows rows = {on.problem,  logits.size(0),   row(logits),
                       row(target), row(weight),      row(pos_weight),
                       row(mask),   row(grad_output), out.stride(0) * int64_t(out.element_size())};
    loss = run_rows(rows, output);
  }
  if (has_sum(output)) in_float_mode([&] { *static_cast<double*>(loss_sum->mutable_data_ptr()) += loss; });
}

// ---- One output --------------------------------------------------------------------------------------------------

struct CpuLayer {
  explicit CpuLayer(const Tensor&) {}

  Tensor empty(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype) const {
    return empty_cpu(sizes, strides, dtype);
  }

  void run(LinearProblem& problem, Output output, const Tensor& linear_weight, const OptionalTensor& linear_bias,
           Mean mean, const SingleResults& results) const {
    const double divisor = mean.count != nullptr ? *mean.count : mean.value;
    in_float_mode([&] { problem.loss.scale = 1 / divisor; });
    const int64_t features = problem.features, parts = parts_of(problem);
    const ScalarType dot_type =
        linear_weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const Tensor converted = torch::stable::contiguous(torch::stable::to(linear_weight, dot_type));
    const Tensor dot_weight = empty_cpu({padded(features)}, {1}, dot_type);  // aligned, which loads like
    const size_t bytes = dot_weight.element_size();
    std::memset(dot_weight.mutable_data_ptr(), 0, size_t(padded(features)) * bytes);
    std::memcpy(dot_weight.mutable_data_ptr(), converted.const_data_ptr(), size_t(features) * bytes);
    problem.linear_weight = dot_weight.const_data_ptr();
    problem.bias = linear_bias.has_value() ? scalar_of(*linear_bias) : 0;
    std::vector<double> sums(2 * parts),
        weight_sums(results.grad_weight != nullptr ? std::max<int64_t>(parts, 1) * features : 0);
    problem.loss_and_grad_bias = sums.data();
    if (results.grad_weight != nullptr) problem.grad_weight = weight_sums.data();
    LinearKernel* const kernel = isa().linear;
    torch::stable::parallel_for(0, parts, /*grain_size=*/1, [&](int64_t first, int64_t last) {
      std::vector<char> scratch(padded(features) * bytes + 64);
      void* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
      in_float_mode([&] { kernel(problem, first, last, output, aligned); });
    });

    double loss_mean = 0, bias_sum = 0;
    in_float_mode([&] {
      for (int64_t part = 0; part < parts; ++part) {
        loss_mean += sums[2 * part];
        bias_sum += sums[2 * part + 1];
      }
      loss_mean /= divisor;
    });
    if (results.loss != nullptr) write_scalar(loss_mean, *results.loss);
    if (results.grad_bias != nullptr) write_scalar(bias_sum, *results.grad_bias);
    if (results.grad_weight == nullptr) return;
    torch::stable::parallel_for(0, features, /*grain_size=*/4096, [&](int64_t begin, int64_t end) {
      in_float_mode([&] {
        double* const total = weight_sums.data();  // begins as the first part's, none of which is -0.0
        for (int64_t part = 1; part < parts; ++part) {
          for (int64_t j = begin; j < end; ++j) total[j] += weight_sums[part * features + j];
        }
        with_data(*results.grad_weight, [&](auto* out) {
          for (int64_t j = begin; j < end; ++j) out[j] = rounded_to<std::remove_pointer_t<decltype(out)>>(total[j]);
        });
      });
    });
  }
};

}  // namespace
}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CPU, m) {
  m.impl("bce_tile_", TORCH_BOX(&fused_logistic::tile_cpu));
  m.impl("linear_bce_single", TORCH_BOX(&fused_logistic::linear_bce_single<fused_logistic::CpuLayer>));
}
