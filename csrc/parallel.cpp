#include "parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace fused_logistic {

double run(const Problem& problem, Output output) {
  const int64_t count = chunks(problem.numel);
  double few[64];
  std::vector<double> many(count > 64 ? count : 0);
  double* partials = count > 64 ? many.data() : few;
  ChunkKernel* const kernel = isa().kernel;
  at::parallel_for(0, count, /*grain_size=*/2,
                   [&](int64_t first, int64_t last) { kernel(problem, first, last, output, partials); });
  return has_sum(output) ? ordered_sum(partials, count) : 0;
}

double run_rows(const RowsProblem& problem, Output output) {
  const int64_t per_row = chunks(problem.row.numel), count = problem.rows * per_row;
  std::vector<double> partials(has_sum(output) ? count : 0);
  ChunkKernel* const kernel = isa().kernel;
  at::parallel_for(0, count, /*grain_size=*/2, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t r = begin / per_row, first = begin % per_row, last = std::min(per_row, first + end - begin);
      const auto at_row = [r](const RowOperand& operand) {
        Operand result = operand.operand;
        if (result.data != nullptr) result.data = static_cast<const char*>(result.data) + r * operand.step;
        return result;
      };
      Problem row = problem.row;
      row.logits = at_row(problem.logits);
      row.target = at_row(problem.target);
      row.weight = at_row(problem.weight);
      row.pos_weight = at_row(problem.pos_weight);
      row.grad_output = at_row(problem.grad_output);
      if (row.out != nullptr) row.out = static_cast<char*>(row.out) + r * problem.out_step;
      kernel(row, first, last, output, has_sum(output) ? partials.data() + r * per_row : nullptr);
      begin += last - first;
    }
  });
  return has_sum(output) ? ordered_sum(partials.data(), count) : 0;
}

}  // namespace fused_logistic
