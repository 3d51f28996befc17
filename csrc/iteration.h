// From tensors to a Problem: what the CPU and the CUDA entry points share. Checks, result types, and how every operand
// lies relative to the logits.
#pragma once
#include <ATen/core/Reduction.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

#include "problem.h"

namespace fused_logistic {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using DTypeArgument = std::optional<at::ScalarType>;

// The arguments that all ops share.
struct Arguments {
  const Tensor& logits;
  const Tensor& target;
  const OptionalTensor& weight;
  const OptionalTensor& pos_weight;
  const OptionalTensor& mask;
  int64_t reduction;
  double label_smoothing;
  std::optional<int64_t> ignore_index;
  std::optional<double> gamma, alpha;  // of the focal loss; without gamma it is the plain one

  bool selects() const { return mask.has_value() || ignore_index.has_value(); }
};

// Every op takes (logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index), something of its
// own, and (gamma, alpha).
#define FL_PARAMETERS                                                                                         \
  const Tensor &logits, const Tensor &target, const OptionalTensor &weight, const OptionalTensor &pos_weight, \
      const OptionalTensor &mask, int64_t reduction, double label_smoothing, std::optional<int64_t> ignore_index
#define FL_FOCAL_PARAMETERS std::optional<double> gamma, std::optional<double> alpha
#define FL_ARGUMENTS logits, target, weight, pos_weight, mask, reduction, label_smoothing, ignore_index

// Throws unless the arguments fit together; the message names the op, what was expected and what came.
void check(const Arguments& arguments);

// op: named in the error for a type that no kernel reads.
DType dtype_of(at::ScalarType type, const char* op = "binary_cross_entropy_with_logits");

// For the ops that give gradients with the loss, which is then a mean or a sum.
void check_reduced(const char* op, int64_t reduction);

// Which operand a derivative is taken with respect to (the int `wrt` of the schemas).
enum class Wrt : int64_t { kLogits, kTarget, kWeight, kPosWeight };

// The kernels' output that is the derivative with respect to an operand, and the operand, whose dtype it takes.
std::pair<Output, const Tensor&> derivative(const Arguments& arguments, int64_t wrt);

// Whether the dtype has the value: comparing with a tensor of it, torch would wrap the value to one that may be there.
bool holds(at::ScalarType type, int64_t value);

// The dtype of the loss, as torch's: the target's if it is a floating type, else the logits'.
at::ScalarType loss_dtype(const Arguments& arguments, DTypeArgument dtype);

// Owns what a Problem points to.
class Iteration {
 public:
  explicit Iteration(const Arguments& arguments);

  void set_grad_output(const Tensor& grad_output);
  // A new tensor shaped and laid out as the logits; the problem's elementwise output.
  Tensor allocate_out(at::ScalarType dtype);

  Problem problem;

 private:
  Operand operand(const Tensor& tensor);
  Tensor in_order(const Tensor& tensor) const;

  const char* op_;             // its name, for messages
  Tensor logits_;              // dense: its elements fill its memory without gaps or overlaps
  bool contiguous_;            // in row-major order; otherwise order_ is
  at::DimVector order_;        // the logits' dimensions from the slowest to the fastest in memory
  std::vector<Tensor> owned_;  // copies of operands that are neither dense nor broadcast along one group of dimensions
};

}  // namespace fused_logistic
