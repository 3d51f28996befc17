// A layer with one output on the CPU: z = x w + b, the loss and all gradients in one pass over x (cpu/linear_kernel.h).
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "linear.h"

namespace fused_logistic {
namespace {

// The parts into which the rows are divided, by the sizes alone: enough for many threads, and few enough that their
// sums of the weight's gradient stay small whatever the number of rows.
int64_t rows_per_part(int64_t rows, int64_t features, int64_t element_bytes) {
  const int64_t block = block_rows(features, element_bytes), blocks = (rows + block - 1) / block;
  const int64_t affordable = (int64_t(8) << 20) / (std::max<int64_t>(features, 1) * int64_t(sizeof(double)));
  const int64_t parts = std::clamp<int64_t>(affordable, 8, 256);
  return std::max<int64_t>((blocks + parts - 1) / parts, 1) * block;
}

OptionalTensor column(const OptionalTensor& matrix) {
  return matrix.has_value() ? OptionalTensor(matrix->select(1, 0)) : std::nullopt;
}

}  // namespace

LinearResult single_output(const Layer& layer, GradMask mask) {
  const LinearArguments& a = layer.arguments;
  const bool has_loss = !layer.grad_output.has_value(), has_grad = mask[0] || mask[1] || mask[2];
  const auto type = a.input.scalar_type();
  const auto dot_type = type == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor logits = at::empty({layer.rows}, a.input.options());  // never touched: the shape of the losses
  const Tensor target = layer.target.select(1, 0);
  const OptionalTensor weight = column(layer.weight), pos_weight = column(layer.pos_weight), none;
  Iteration iteration({logits, target, weight, pos_weight, none, a.reduction, a.label_smoothing, a.ignore_index});
  if (!has_loss) iteration.set_grad_output(layer.grad_output->select(1, 0));
  const double count = mean_count(layer, nullptr);
  iteration.problem.scale = 1 / count;

  LinearResult result;
  Output output = has_loss ? (has_grad ? Output::kLossSumAndGrad : Output::kLossSum) : Output::kGradLogits;
  const bool elements = has_loss && a.reduction == at::Reduction::None;
  if (elements) {
    result.loss = iteration.allocate_out(loss_dtype(a));
    output = Output::kLoss;
  }
  const Tensor input = layer.input.stride(1) == 1 || layer.features <= 1 ? layer.input : layer.input.contiguous();
  const Tensor linear_weight = at::zeros({padded(layer.features)}, a.input.options().dtype(dot_type));
  linear_weight.narrow(0, 0, layer.features).copy_(layer.linear_weight[0]);

  LinearProblem problem;
  problem.loss = iteration.problem;
  problem.input = input.const_data_ptr();
  problem.input_dtype = dtype_of(type);
  problem.features = layer.features;
  problem.row_stride = input.stride(0);
  problem.linear_weight = linear_weight.const_data_ptr();
  problem.bias = layer.bias.has_value() ? layer.bias->item<double>() : 0;
  problem.rows_per_part = rows_per_part(layer.rows, layer.features, input.element_size());
  const int64_t parts = (layer.rows + problem.rows_per_part - 1) / problem.rows_per_part;
  std::vector<double> sums(2 * parts), grad_weight(mask[1] ? parts * layer.features : 0);
  problem.loss_and_grad_bias = sums.data();
  if (mask[1]) problem.grad_weight = grad_weight.data();
  if (mask[0]) {
    result.grad_input = empty_cpu({layer.rows, layer.features}, {layer.features, 1}, type);
    problem.grad_input = result.grad_input.mutable_data_ptr();
  }
  LinearKernel* const kernel = isa().linear;
  at::parallel_for(0, parts, /*grain_size=*/1, [&](int64_t first, int64_t last) {
    std::vector<char> scratch(padded(layer.features) * input.element_size() * 2 + 64);
    void* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
    kernel(problem, first, last, output, aligned);
  });

  double loss = 0, grad_bias = 0;
  for (int64_t part = 0; part < parts; ++part) {
    loss += sums[2 * part];
    grad_bias += sums[2 * part + 1];
  }
  if (has_loss && !elements) result.loss = at::scalar_tensor(loss / count, a.input.options().dtype(at::kDouble));
  if (mask[1]) {
    const Tensor total = at::empty({1, layer.features}, a.input.options().dtype(at::kDouble));
    double* const out = total.mutable_data_ptr<double>();
    at::parallel_for(0, layer.features, /*grain_size=*/4096, [&](int64_t begin, int64_t end) {
      std::fill(out + begin, out + end, 0.0);
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t j = begin; j < end; ++j) out[j] += grad_weight[part * layer.features + j];
      }
    });
    result.grad_weight = total.to(type);
  }
  if (mask[2]) result.grad_bias = at::full({1}, grad_bias, a.input.options().dtype(at::kDouble)).to(type);
  return result;
}

}  // namespace fused_logistic
