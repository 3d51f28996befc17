// The schemas of the ops, the only place where their arguments are listed. The kernels are registered in cpu/launch.cpp and
// cuda/launch.cpp, but those of the layer's ops, fused_logistic/layer.py, in fused_logistic/registration.py, with all that
// torch asks beside them: fused_logistic/composite.py differentiates, checks.py checks.
#include <torch/csrc/stable/library.h>

#include "options.h"

// Every op ends with the options.
#define OPTIONS ", " FL_OPTIONS_SCHEMA ") -> "

// count: a float64 scalar, the number of elements that a mean is taken over, where mask, ignore_index or ignore_nan
// leave some out.
// reduction: 0 none, 1 mean, 2 sum (an int: DTensor caches sharding decisions by ints, not by strings).
#define OPERANDS "Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? mask, Tensor? count, "

// A sparse target [rows, labels] comes as its values and indices. Gradients that output_mask leaves out are empty.
#define LAYER                                                                                              \
  "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? crow_indices, Tensor? " \
  "col_indices, Tensor? weight, Tensor? pos_weight, Tensor? mask, Tensor? count, int reduction, int? chunk_bytes, "

// Image i and text i belong together.
#define PAIRS "Tensor image_features, Tensor text_features, Tensor logit_scale, Tensor? logit_bias, int? tile_bytes"
#define PAIRS_GRADIENTS "Tensor grad_image, Tensor grad_text, Tensor grad_scale, Tensor grad_bias"

STABLE_TORCH_LIBRARY(fused_logistic, m) {
  m.def("bce(" OPERANDS "int reduction, ScalarType dtype" OPTIONS "Tensor");
  m.def("bce_with_grad(" OPERANDS "int reduction, ScalarType dtype" OPTIONS "(Tensor loss, Tensor grad_logits)");
  m.def("bce_with_grad_for(Tensor grad_output, " OPERANDS "int reduction, ScalarType dtype" OPTIONS
        "(Tensor loss, Tensor grad_logits)");
  m.def("bce_backward(Tensor grad_output, " OPERANDS "int reduction, int wrt" OPTIONS "Tensor");
  m.def("bce_backward_(Tensor(a!) grad_logits, Tensor grad_output, Tensor? made_for, " OPERANDS "int reduction" OPTIONS
        "()");
  m.def("bce_count(Tensor target, Tensor? mask, int? ignore_index, bool ignore_nan=False) -> Tensor");
  m.def(
      "bce_tile_(Tensor(a!) logits, Tensor(b!)? losses, Tensor(c!)? loss_sum, Tensor(d!)? bias_sum, Tensor target, "
      "Tensor? crow_indices, Tensor? col_indices, Tensor? weight, Tensor? pos_weight, Tensor? mask, Tensor? "
      "grad_output, Tensor? count, float scale, int first_label, bool whole, bool wants_grad" OPTIONS "()");

  m.def("linear_bce(" LAYER "ScalarType dtype" OPTIONS "Tensor");
  m.def("linear_bce_with_grad(" LAYER "ScalarType dtype, bool[3] output_mask" OPTIONS
        "(Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def("linear_bce_backward(Tensor grad_output, " LAYER "bool[3] output_mask" OPTIONS
        "(Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "linear_bce_single(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
      "Tensor? pos_weight, Tensor? mask, Tensor? grad_output, Tensor? count, int reduction, ScalarType dtype, bool[3] "
      "output_mask" OPTIONS "(Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def("pairs(" PAIRS ") -> Tensor");
  m.def("pairs_with_grad(" PAIRS ", bool[4] output_mask) -> (Tensor loss, " PAIRS_GRADIENTS ")");
  m.def("pairs_backward(Tensor grad_output, " PAIRS ", bool[4] output_mask) -> (" PAIRS_GRADIENTS ")");
  m.def(
      "pairs_tile_(Tensor(a!) similarities, Tensor(b!)? grad, Tensor(c!) sums, Tensor scale, Tensor? bias, int? "
      "diagonal, float factor, bool wants_grad) -> ()");

  m.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
  m.def("empty(int[] size, ScalarType dtype) -> Tensor");
}
