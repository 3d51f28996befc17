// What the user asks for beside the tensors: on its way from the ops' schemas to the kernels it travels as one value. What only
// passes it on names nothing of it. No torch: the kernels include this, and read Options.
#pragma once
#include <stdint.h>

#include <optional>

#include "refuse.h"

namespace fused_logistic {

enum class Loss : int8_t { kBce, kFocal, kQuality, kAsymmetric };  // which struct of losses.h

struct Options {
  double label_smoothing = 0;
  bool has_ignore_index = false;
  int64_t ignore_index = 0;
  Loss loss = Loss::kBce;
  bool has_whole_powers = false;  // the exponents below are 0, 1, 2, 3 or 4
  // Focal: the loss times q^gamma and alpha_t, which is alpha y + alpha_opposite (1 - y); 1 and 1 without alpha.
  // Quality, and varifocal: gamma, which the former's authors call beta, and alpha, see quality.h. Asymmetric: gamma is gamma_neg.
  double gamma = 0, alpha = 1, alpha_opposite = 1;
  bool is_varifocal = false, iou_weighted = false;
  double gamma_pos = 0, clip = 0;
  bool ignore_nan = false;  // targets that are NaN are missing
};

// Whether a target may say that its element is left out. static: a file built for one instruction set must not lend its
// copy to the others.
static constexpr bool leaves_out(const Options& options) { return options.has_ignore_index || options.ignore_nan; }
// Whether targets are taken as they are and all elements kept.
static constexpr bool is_plain(const Options& options) { return options.label_smoothing == 0 && !leaves_out(options); }

// ---- As the ops' last arguments ------------------------------------------------------------------------------------

// In a schema. Which loss it is, its parameters tell: gamma alone or with alpha, focal; with alpha and iou_weighted,
// varifocal; beta, quality; gamma_neg, gamma_pos and clip, asymmetric; none, binary cross entropy.
#define FL_OPTIONS_SCHEMA                                                                                             \
  "float label_smoothing=0.0, int? ignore_index=None, float? gamma=None, float? alpha=None, float? beta=None, bool? " \
  "iou_weighted=None, float? gamma_neg=None, float? gamma_pos=None, float? clip=None, bool ignore_nan=False"
// As parameters, and as the Options that these are, or a refusal in the name of the op.
#define FL_OPTIONS                                                                               \
  double label_smoothing, std::optional<int64_t> ignore_index, std::optional<double> gamma,      \
      std::optional<double> alpha, std::optional<double> beta, std::optional<bool> iou_weighted, \
      std::optional<double> gamma_neg, std::optional<double> gamma_pos, std::optional<double> clip, bool ignore_nan
#define FL_GIVEN_OPTIONS(op)                                                                                  \
  options_of(op, label_smoothing, ignore_index, gamma, alpha, beta, iou_weighted, gamma_neg, gamma_pos, clip, \
             ignore_nan)

constexpr double kMaxGamma = 1e30;  // in fp32 its product with the logarithm of a probability is still finite
constexpr double kMinClip = 1e-9;   // below it -log(1 - p_m) would need a logarithm of more than 2^32 (log1p_large)

// What bce_count takes of them: which elements are left out.
inline Options leaving_out(std::optional<int64_t> ignore_index, bool ignore_nan) {
  Options options;
  options.ignore_nan = ignore_nan;
  options.has_ignore_index = ignore_index.has_value();
  options.ignore_index = ignore_index.value_or(0);
  return options;
}

inline bool is_exponent(double gamma) { return gamma >= 0 && gamma <= kMaxGamma; }
inline bool is_whole_exponent(double gamma) {
  return gamma == 0 || gamma == 1 || gamma == 2 || gamma == 3 || gamma == 4;
}

inline Options options_of(const char* op, FL_OPTIONS) {
  require(label_smoothing >= 0 && label_smoothing <= 1, op, "label_smoothing is not between 0 and 1");
  require(gamma.has_value() + beta.has_value() + gamma_neg.has_value() <= 1, op,
          "gamma, beta and gamma_neg exclude each other");
  require(is_exponent(gamma.value_or(0)), op, "gamma is not between 0 and 1e30");
  require(is_exponent(beta.value_or(0)), op, "beta is not between 0 and 1e30");
  require(is_exponent(gamma_neg.value_or(0)), op, "gamma_neg is not between 0 and 1e30");
  require(is_exponent(gamma_pos.value_or(0)) && gamma_pos.has_value() == gamma_neg.has_value(), op,
          "gamma_pos is not between 0 and 1e30, beside gamma_neg");
  const double m = clip.value_or(0);
  require((m == 0 || (m >= kMinClip && m <= 1)) && clip.has_value() == gamma_neg.has_value(), op,
          "clip is neither 0 nor between 1e-9 and 1, beside gamma_neg");
  require(!alpha.has_value() || (*alpha >= 0 && *alpha <= 1 && gamma.has_value()), op, "alpha does not fit");
  require(!iou_weighted.has_value() || alpha.has_value(), op, "iou_weighted does not fit");
  Options options = leaving_out(ignore_index, ignore_nan);
  options.label_smoothing = label_smoothing;
  options.gamma = gamma.value_or(beta.value_or(gamma_neg.value_or(0)));
  options.has_whole_powers = is_whole_exponent(options.gamma) && is_whole_exponent(gamma_pos.value_or(0));
  if (gamma_neg.has_value()) {
    options.loss = Loss::kAsymmetric;
    options.gamma_pos = *gamma_pos;
    options.clip = m;
  } else if (beta.has_value() || iou_weighted.has_value()) {
    options.loss = Loss::kQuality;
    options.is_varifocal = iou_weighted.has_value();
    options.iou_weighted = iou_weighted.value_or(false);
    options.alpha = alpha.value_or(1);
  } else if (gamma.has_value()) {
    options.loss = Loss::kFocal;
    if (alpha.has_value()) options.alpha = *alpha, options.alpha_opposite = 1 - *alpha;
  }
  return options;
}

}  // namespace fused_logistic
