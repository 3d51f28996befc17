// From torch's tensors to a Problem: which dtypes there are, and how every operand lies relative to the logits. Done once
// a call. All that the library knows of torch is its stable ABI (torch/csrc/stable), which any torch from 2.11 on keeps.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "problem.h"

namespace fused_logistic {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

FL_API DType dtype_of(ScalarType type);
FL_API bool is_floating(ScalarType type);
// What is read of a tensor. One whose storage was freed has none, and null stands for an operand that is not given.
FL_API const void* data_of(const Tensor& tensor, const char* op);

// Uninitialised.
FL_API Tensor empty_strided(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype,
                            torch::stable::Device device);
inline Tensor empty_scalar(ScalarType dtype, const Tensor& like) { return empty_strided({}, {}, dtype, like.device()); }

enum Reduction : int64_t { kNone, kMean, kSum };  // torch's numbers

// Which operand a derivative is taken with respect to.
enum class Wrt : int64_t { kLogits, kTarget, kWeight, kPosWeight };

// The operands that the ops share. Behind them come the options (options.h).
// count: the number of elements that a mean is taken over, where that is not all of them.
struct Operands {
  const Tensor& logits;
  const Tensor& target;
  const OptionalTensor& weight;
  const OptionalTensor& pos_weight;
  const OptionalTensor& mask;
  const OptionalTensor& count;
};
#define FL_OPERANDS                                                                                           \
  const Tensor &logits, const Tensor &target, const OptionalTensor &weight, const OptionalTensor &pos_weight, \
      const OptionalTensor &mask, const OptionalTensor &count
#define FL_GIVEN_OPERANDS \
  Operands { logits, target, weight, pos_weight, mask, count }

// A Problem and the tensors that it points into.
class FL_API TensorProblem {
 public:
  // Refuses what does not fit together, in the name of `op`.
  TensorProblem(const char* op, const Operands& operands, const Options& options);
  // For Output::kCount, which reads no logits, and the target only where it may say that its element is left out.
  TensorProblem(const char* op, const Tensor& target, const OptionalTensor& mask, const Options& options);

  void set_grad_output(const Tensor& grad_output);
  // The problem's elementwise output: of the logits' shape and layout, which these are.
  void set_out(const Tensor& out);
  IntHeaderOnlyArrayRef sizes() const { return logits_.sizes(); }
  IntHeaderOnlyArrayRef strides() const { return logits_.strides(); }
  const char* op() const { return op_; }

  Problem problem;

 private:
  TensorProblem(const char* op, const Tensor& logits, const OptionalTensor& mask);
  Operand operand(const Tensor& tensor);
  Operand optional_operand(const OptionalTensor& tensor);
  Operand class_indices(const Tensor& target);
  std::vector<int64_t> strides_in_order(const Tensor& tensor) const;
  // The logits' dimensions from the slowest to the fastest in memory.
  int64_t in_memory(int64_t i) const { return contiguous_ ? i : order_[i]; }

  const char* op_;
  Tensor logits_;    // dense: its elements fill its memory without gaps or overlaps
  bool contiguous_;  // in row-major order; otherwise order_ is
  std::vector<int64_t> order_;
  std::vector<Tensor> owned_;  // copies of operands that are neither dense nor broadcast along one group of dimensions
};

}  // namespace fused_logistic
