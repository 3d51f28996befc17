// The CPU entry points of the losses.
#include "launch.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../ops.h"
#include "kernels.h"
#include "memory.h"

namespace fused_logistic {
namespace {

struct Cpu {
  explicit Cpu(const Tensor&) {}

  Tensor empty(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype) const {
    return empty_cpu(sizes, strides, dtype);
  }
  bool is_made(const OptionalTensor& made_for, const Tensor& grad_output) const {
    const double value = scalar_of(grad_output);  // 0 has two signs, which gradients have too
    return value != 0 && value == (made_for.has_value() ? scalar_of(*made_for) : 1);
  }

  void run(Problem& problem, Output output, Mean mean, const Tensor* result, const Operand* /*made_for*/ = {}) const {
    in_float_mode([&] {
      const double divisor = mean.count != nullptr ? *mean.count : mean.value;
      problem.scale = 1 / divisor;
      const double sum = fused_logistic::run(problem, output);
      if (result != nullptr) write_scalar(sum / divisor, *result);
    });
  }
};

Tensor empty(std::vector<int64_t> sizes, ScalarType dtype) {
  double bytes = 8;  // at most; as a number that does not overflow
  for (const int64_t size : sizes) {
    require(size >= 0, "empty", "a size is negative");
    bytes *= double(size);
  }
  require(bytes < 0x1p62, "empty", "more bytes than there are addresses");
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return empty_cpu(sizes, strides, dtype);
}

}  // namespace

double run(const Problem& problem, Output output) {
  const int64_t count = chunks(problem.numel);
  double few[64];
  std::vector<double> many(count > 64 ? count : 0);
  double* partials = count > 64 ? many.data() : few;
  ChunkKernel* const kernel = isa().kernel;
  const auto chunks_from = [&](int64_t first, int64_t last) {
    in_float_mode([&] { kernel(problem, first, last, output, partials); });
  };
  // a parallel region of one chunk is a microsecond of nothing
  count == 1 ? chunks_from(0, 1) : torch::stable::parallel_for(0, count, /*grain_size=*/2, chunks_from);
  double sum = 0;
  if (has_sum(output)) in_float_mode([&] { sum = ordered_sum(partials, count); });
  return sum;
}

Tensor empty_cpu(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype) {
  constexpr auto kCpu = torch::stable::DeviceType::CPU;
  using torch::stable::detail::from, torch::stable::detail::to;
  size_t bytes = aoti_torch_dtype_element_size(to<int32_t>(from(dtype)));
  for (const int64_t size : sizes) bytes *= size_t(size);
  void* const block = bytes < kLargeBlock ? nullptr : take_block(bytes);
  if (block == nullptr) return empty_strided(sizes, strides, dtype, kCpu);  // or an error
  return torch::stable::from_blob(block, sizes, strides, kCpu, dtype, &release_block);
}

double scalar_of(const Tensor& tensor) {
  double value = 0;
  in_float_mode([&] { with_data(tensor, [&](auto* data) { value = double(*data); }); });
  return value;
}

void write_scalar(double value, const Tensor& result) {
  in_float_mode([&] {
    with_data(result, [&](auto* data) { *data = rounded_to<std::remove_pointer_t<decltype(data)>>(value); });
  });
}

Tensor scalar_tensor(double value, ScalarType dtype) {
  const Tensor result = empty_cpu({}, {}, dtype);
  write_scalar(value, result);
  return result;
}

}  // namespace fused_logistic

STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CPU, m) {
  using Cpu = fused_logistic::Ops<fused_logistic::Cpu>;
  m.impl("bce", TORCH_BOX(&Cpu::bce));
  m.impl("bce_with_grad", TORCH_BOX(&Cpu::bce_with_grad));
  m.impl("bce_with_grad_for", TORCH_BOX(&Cpu::bce_with_grad_for));
  m.impl("bce_backward", TORCH_BOX(&Cpu::bce_backward));
  m.impl("bce_backward_", TORCH_BOX(&Cpu::bce_backward_));
  m.impl("bce_count", TORCH_BOX(&Cpu::bce_count));
}
STABLE_TORCH_LIBRARY_IMPL(fused_logistic, CompositeExplicitAutograd, m) {
  m.impl("empty", TORCH_BOX(&fused_logistic::empty));
}
