// What the user asks for beside the tensors: on its way from the ops' schemas to the kernels it travels as one value, and is
// named here alone, but for losses.h, which computes with it. No torch: the kernels include this, and read Options.
#pragma once
#include <stdint.h>

#include <optional>

#include "refuse.h"

namespace fused_logistic {

enum class Loss : int8_t { kBce, kFocal, kFocalOfWholeGamma };  // which struct of losses.h

struct Options {
  double label_smoothing = 0;
  bool has_ignore_index = false;
  double ignore_index = 0;
  Loss loss = Loss::kBce;
  // The focal losses: the loss times q^gamma and alpha_t, which is alpha y + alpha_opposite (1 - y); 1 and 1 without alpha
  double gamma = 0, alpha = 1, alpha_opposite = 1;
};

// Whether targets are taken as they are and all elements kept. static: a file built for one instruction set must not lend
// its copy to the others.
static constexpr bool is_plain(const Options& options) {
  return options.label_smoothing == 0 && !options.has_ignore_index;
}

// ---- As the ops' last arguments ------------------------------------------------------------------------------------

// In a schema. gamma: the focal loss, with alpha or without; none: binary cross entropy.
#define FL_OPTIONS_SCHEMA "float label_smoothing=0.0, int? ignore_index=None, float? gamma=None, float? alpha=None"
// As parameters, and as the Options that these are, or a refusal in the name of the op.
#define FL_OPTIONS \
  double label_smoothing, std::optional<int64_t> ignore_index, std::optional<double> gamma, std::optional<double> alpha
#define FL_GIVEN_OPTIONS(op) options_of(op, label_smoothing, ignore_index, gamma, alpha)

constexpr double kMaxGamma = 1e30;  // in fp32 its product with the logarithm of a probability is still finite

// What bce_count takes of them: which elements are left out.
inline Options leaving_out(std::optional<int64_t> ignore_index) {
  Options options;
  options.has_ignore_index = ignore_index.has_value();
  options.ignore_index = double(ignore_index.value_or(0));
  return options;
}

inline Options options_of(const char* op, FL_OPTIONS) {
  require(label_smoothing >= 0 && label_smoothing <= 1, op, "label_smoothing is not between 0 and 1");
  require(!gamma.has_value() || (*gamma >= 0 && *gamma <= kMaxGamma), op, "gamma is not between 0 and 1e30");
  require(!alpha.has_value() || (*alpha >= 0 && *alpha <= 1 && gamma.has_value()), op, "alpha does not fit");
  Options options = leaving_out(ignore_index);
  options.label_smoothing = label_smoothing;
  if (!gamma.has_value()) return options;
  const bool is_whole = *gamma == 0 || *gamma == 1 || *gamma == 2 || *gamma == 3 || *gamma == 4;
  options.loss = is_whole ? Loss::kFocalOfWholeGamma : Loss::kFocal;
  options.gamma = *gamma;
  if (alpha.has_value()) options.alpha = *alpha, options.alpha_opposite = 1 - *alpha;
  return options;
}

}  // namespace fused_logistic
