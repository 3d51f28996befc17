// The CPU kernels on torch's threads. The order of the sums is the kernels' and that of the rows, not the threads'.
#pragma once
#include "iteration.h"

namespace fused_logistic {

// Runs the kernel over all chunks; returns the sum for outputs that have one.
double run(const Problem& problem, Output output);

// An operand of one row of a matrix, and how many bytes further the next row's lies.
struct RowOperand {
  Operand operand;
  int64_t step = 0;
};
// A matrix whose rows are dense while the matrix is not (a block of columns): row r of it is `row` with its operands r
// steps further. The result is that of run for each row, added up in order.
struct RowsProblem {
  Problem row;
  int64_t rows = 0;
  RowOperand logits, target, weight, pos_weight, grad_output;
  int64_t out_step = 0;
};
double run_rows(const RowsProblem& problem, Output output);

}  // namespace fused_logistic
