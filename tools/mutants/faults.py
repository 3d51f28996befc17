"""The faults that ``make mutants`` plants, one at a time: where, what is replaced, and which tests have to notice.

``at``: a text that the file has once, such as the head of a function; ``before``: an expression, the first one so
spelt from there on. C++ expressions have to keep their type: both stand in one build, which chooses when it is loaded.
"""

from __future__ import annotations

from typing import NamedTuple

PACKAGE, CSRC = "fused_logistic/", "csrc/"
_NEAR = 6000  # characters: further away is another function


class Fault(NamedTuple):
    file: str
    at: str
    before: str
    after: str
    tests: str  # names of test files, cheap ones first
    equivalent: str = ""  # why nothing can notice, where nothing can

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.at.split())}: {' '.join(self.before.split())} -> {self.after or 'nothing'}"

    def place(self, text: str) -> int:
        """Where ``before`` is in the file's text."""
        if text.count(self.at) != 1:
            raise LookupError(f"{self}: `{self.at}` is {text.count(self.at)} times in the file")
        start = text.index(self.at)
        place = text.find(self.before, start, start + _NEAR)
        if place < 0:
            raise LookupError(f"{self}: the expression is not there")
        return place


def python(file: str, tests: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(PACKAGE + file, *fault, tests) for fault in faults]


def cpp(file: str, tests: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(CSRC + file, *fault, tests) for fault in faults]


PYTHON = [
    *python(
        "autograd.py", "made_for autograd loss transforms",
        ("def made_early", "reduction != ops.NONE and any(wanted)", "any(wanted)"),
        ("def handed_out", "not torch.is_grad_enabled()", "True"),
        ("def handed_out", "not ops.transformed(grad_output)", "True"),
        ("def loss_dtype", "dtype if dtype.is_floating_point else input.dtype", "input.dtype"),
        ("class BinaryCrossEntropyWithLogits", "value == made.value", "True"),
        ("class BinaryCrossEntropyWithLogits", "grads[0], ctx.grad_logits = ctx.grad_logits, None",
         "grads[0] = ctx.grad_logits"),
    ),
    *python(
        "ops.py", "small_calls",
        ("def call_loss", "recorded()", "False"),
        ("def call_loss", "_is_profiled()", "False"),
        ("def _backend_of", "_BACKENDS.get(_keys(arg).raw_repr())", "_BACKENDS[min(_BACKENDS)]"),
    ),
    *python(
        "autograd.py", "linear linear_transforms linear_mask",
        ("class LinearBinaryCrossEntropy", "args[0].dtype == torch.float16 or", ""),
        ("class LinearBinaryCrossEntropy", "[_scaled(g, grad_output) for g in gradients]", "list(gradients)"),
        ("def _scaled", "if factor is not None and math.isfinite(factor):", "if factor is not None:"),
    ),
    *python(
        "autograd.py", "pairs_autograd pairs",
        ("class SigmoidContrastive", "[_scaled(g, grad_output) for g in gradients]", "list(gradients)"),
    ),
    *python(
        "made_for.py", "made_for",
        ("def remember", "grad_output.detach().clone()", "grad_output.detach()"),
        ("def kind_of", "logits.numel()", "0"),
        ("def remember", "last.age + 1 < _RENEWED", "True"),
    ),
    *python(
        "composite.py", "ops transforms left_out functions options",
        ("def smoothed(", "s * like(y, 0.5)", "s * like(y, 1)"),
        ("def _weight", "torch.where(b == 0, a.clamp(-most, most), a)", "a"),
        ("class _Terms:", "torch.where(self.kept, z, 0)", "z"),
        ("def by_logits", "self.a * torch.sigmoid(-self.z)", "self.positive * torch.sigmoid(-self.z)"),
        ("def by_target(self) -> Tensor:\n        \"\"\"Without", "return -self.z", "return self.z"),
        ("def bce_backward(", "1 - given.label_smoothing", "1"),
        ("def bce_backward(", "torch.where(terms.kept, divisor, 1)", "divisor"),
    ),
    *python(
        "composite_powers.py", "focal family",
        ("class Focal(Power)", "alpha_t = self.alpha_opposite + self.alpha_slope * self.y",
         "alpha_t = self.alpha_opposite"),
        ("class Focal(Power)", "(1 - 2 * self.y)", "(1 - self.y)"),
        ("class Focal(Power)", "return product(self.alpha_slope * self.power, loss)", "return torch.zeros_like(loss)"),
        ("class Quality(Power)", "torch.where(self.hard_0, easy, -easy)", "easy"),
        ("class Quality(Power)", "return torch.where(self.weight_slope, loss, 0)", "return torch.zeros_like(loss)"),
        ("class Asymmetric(Power)", "torch.where(there, 1 - y, 0) - y", "(1 - y) - y"),
        ("class Asymmetric(Power)", "by_gamma + product(self.gamma * self.by_y, over)",
         "product(self.gamma * self.by_y, over)"),
    ),
    *python(
        "targets.py", "classes ignore_nan left_out",
        ("def are_classes", "shape[class_dim(shape)] != 1", "True"),
        ("def holds", "limits.min <= value <= limits.max", "True"),
        ("def kept", "counts & there", "counts"),
        ("def class_count", "number * there", "number"),
        ("def class_positives", "(target >= 0) & (target < shape[dim])", "target >= 0"),
    ),
    *python(
        "divisor.py", "normalizer normalizer_modes",
        ("def of(", ".clamp_min(1)", ""),
        ("def _weight_of_all", "torch.where(number.bool(), weight, 0)", "weight"),
        ("def _repeats", "[*shape[:missing], *shared]", "shared"),
        ("def divided", "torch.float64 else torch.float32", "torch.float64 else dtype"),
    ),
    *python(
        "batching.py", "vmap classes_transforms linear_transforms options",
        ("def _to_front", "tensor.movedim(dim, 0)", "tensor"),
        ("def _bce(", "losses.mean(1) if count is None", "losses.mean() if count is None"),
        ("def _bce_backward(", "logits[0].numel() if count is None", "logits.numel() if count is None"),
        ("def _count(", "_samples(kept).sum(1)", "_samples(kept).sum()"),
        ("def backward(self, grad: Tensor, output_mask", "rows.sum(1)", "(rows.sum(1) * 0)"),
    ),
    *python(
        "layer.py", "linear_sparse linear linear_mask family_layers",
        ("def sparse(self", "nothing if is_free else 0", "0"),
        ("def sparse(self", "not is_free and self.loss_sum is not None", "False"),
        ("def sparse(self", "(column - tile.label)", "column"),
        ("def sort_by_tile", "stable=True", "stable=True, descending=True"),
        ("def column_of_tiles", "label == 0", "True"),
        ("def column_of_tiles", "row == 0)", "True)"),
        ("def by_op", "whole = tile.labels == m.labels or tile.rows == 1", "whole = True"),
    ),
    *python(
        "matrices.py", "linear_sparse linear_mask normalizer linear_errors bad_inputs",
        ("class Positives", "(place.diff() > 0).all()", "(place.diff() >= 0).all()"),
        ("def left_in", "kept if ignore_index == 0 else ~kept", "~kept"),
    ),
    *python(
        "sparse.py", "linear_sparse linear_features linear_errors bad_inputs",
        ("def _require_places(", "(crow_indices.diff() >= 0).all()", "(crow_indices[0] == 0)"),
        ("def _require_places(", "(col_indices < labels)", "(col_indices <= labels)"),
        ("def _transposed_product", "torch.sort(column, stable=True)", "(column, torch.arange(column.numel()))"),
        ("def _transposed_product", "values * other.squeeze(1).index_select(0, row)",
         "values * other.squeeze(1).index_select(0, row).abs()"),
    ),
    *python(
        "pairs.py", "pairs pairs_ring",
        ("def finished", "self.scale / (self.images * self.factor)", "1 / (self.images * self.factor)"),
        ("def gradients", "self.sums[1:] / self.images", "self.sums[1:]"),
        ("def add(self", "self.is_first and column == 0", "column == 0"),
    ),
    *python(
        "registration.py", "ops compile sweep",
        ("def _like_bce(", "dtype=dtype) if reduction == ops.NONE", "dtype=logits.dtype) if reduction == ops.NONE"),
        ("def _like_bce_backward", "args[args[7]].dtype", "args[0].dtype"),
        ("def _like_gradients", "if wanted and like is not None", "if like is not None"),
        ("def _without_autograd", "args[: _WRITTEN.get(op, 1)]", "args[:1]"),
    ),
    *python(
        "arguments.py", "arguments normalizer",
        ("def beside", "* value", "* 1"),
    ),
    *python(
        "modules.py", "head modules",
        ("def predict(self", "logits >= rounded, logits > rounded", "logits > rounded, logits > rounded"),
        ("def _product(", "of_module * of_call", "of_call"),
    ),
]  # fmt: skip

CPP = [
    *cpp(
        "logistic.h", "exact sums loss",
        ("FL_FN V exp_nonpositive(V x)", "fma(n, splat<V>(-C::ln2_low), t)", "t"),
        ("FL_FN V exp_nonpositive(V x)", "at_least(x, splat<V>(C::exp_lowest))", "x"),
        ("FL_FN V log1p_large(V q)", "(q - (of.power - one))", "((one + q) - of.power)"),
        ("FL_FN V loss(const Logit<V>& logit, const TermWeights",
         "add_term(dominant, -logit.minus_m, weights.sum * log1p_unit(logit.e))",
         "fma(dominant, -logit.minus_m, weights.sum * log1p_unit(logit.e))"),
        ("FL_FN LossGroup<V> with(", "group.q + logit.e", "group.q"),
        ("FL_FN LossGroup<V> with(", "fma(dominant, m, group.linear)", "dominant * m"),
        ("FL_FN LossGroup<V> joined(", "x.linear + y.linear", "x.linear"),
        ("FL_FN V grad_logit(", "fma(-weights.sum, sigma_minus(logit.e), dominant)",
         "dominant - weights.sum * sigma_minus(logit.e)"),
    ),
    *cpp(
        "logistic.h", "loss functions infinite_weights options",
        ("FL_FN TermWeights<V> term_weights(V y, V p, V w", "w * whole", "w"),
        ("FL_FN V grad_target(", "splat<V>(-1)", "splat<V>(1)"),
        ("FL_FN V grad_pos_weight(", "softplus(logit, /*minus=*/true)", "softplus(logit, /*minus=*/false)"),
        ("FL_FN V smooth(V y", "s / 2", "s"),
        ("FL_FN V product(V x, V y)", "select((xy == xy) | (x != x) | (y != y), xy, splat<V>(0))", "xy"),
        ("FL_FN V unless_underflown(", "at_least(small, least)", "small"),
    ),
    *cpp(
        "logistic.h", "focal_exact",
        ("FL_FN V exp_two_parts(", "fma(n, splat<V>(-C::ln2_low), t) + rest", "fma(n, splat<V>(-C::ln2_low), t)"),
        ("FL_FN V exp_two_parts(", "select(x < lowest, splat<V>(0), exp_reduced(shifted, t))",
         "exp_reduced(shifted, t)"),
    ),
    *cpp(
        "losses.h", "options left_out infinite_weights focal",
        ("FL_FN void evaluate(", "(at.mask() != zero)", "(y == y)"),
        ("FL_FN void evaluate(", "y != splat<V>(settings.ignore_index)", "y == y"),
        ("FL_FN void evaluate(", "smooth(y, settings.smoothing)", "y"),
        ("FL_FN void evaluate(", "splat<V>(1 - settings.smoothing)", "splat<V>(1)"),
        ("struct Powered {", "fma(power, plain, zero)", "add_term(power, plain, zero)"),
        ("struct Powered {", "times(factors.slope, L::plain(of, factors, terms), terms)", "splat<V>(0)"),
    ),
    *cpp(
        "focal.h", "focal focal_exact",
        ("FL_FN FocalPower<V> focal_by_log(", "select(u < zero, splat<V>(constants.sign), one)", "one"),
        ("FL_FN Power<V> focal(", "s * (one - s)", "s"),
        ("FL_RARE_FN V focal_grad_target(", "splat<V>(constants.alpha - constants.alpha_opposite)", "splat<V>(0)"),
    ),
    *cpp(
        "quality.h", "family family_exact",
        ("FL_FN Difference<V> difference(", "select(of < zero, -one, one)", "one"),
        ("FL_RARE_FN V quality_grad_target(", "select(positive, zero, slope)", "slope"),
        ("FL_FN V quality_weight(", "constants.iou_weighted ? y : one", "one"),
    ),
    *cpp(
        "asymmetric.h", "family family_exact",
        ("FL_FN Shifted<V> shifted(", "at_least(u, zero)", "u"),
        ("FL_FN TwoParts<V> asymmetric_gamma(", "lost + low", "low"),
        ("FL_FN Asymmetric<V> asymmetric(", "select(at.u == zero, zero, e * both)", "e * both"),
        ("FL_RARE_FN V asymmetric_grad_target(", "(at.minus - at.u)", "at.minus"),
    ),
    *cpp(
        "powers.h", "focal focal_exact family_exact",
        ("FL_RARE_FN V power_of(", "fma(gamma_low, log_q, rest)", "rest"),
        ("FL_FN Power<V> whole_power(", "splat<V>(3) * square", "square"),
    ),
    *cpp(
        "cpu/chunk_kernel.h", "sums infinite_weights loss family family_exact",
        ("FL_FN bool has_hard_targets(", "!any", "true"),
        ("void run_chunks(", "row.scale * grad_output.row(0, 1)[0]", "row.scale"),
        ("void run_chunks(", "(kGrouped && chunk_end - chunk_begin == 1)", "false"),
        ("void run_chunks(", "!(partials[chunk] - partials[chunk] == 0)", "false"),
        ("FL_FN void run_row(", "sum == sum", "true"),
    ),
    *cpp(
        "cpu/source.h", "loss classes memory exact",
        ("case Kind::kTiled:\n        return", "begin % operand_.size", "int64_t(0)"),
        ("if (inner == 1) {", "is_ignored(index)", "false"),
        ("FL_CALLED const C* read_row(", "begin / operand_.inner % operand_.size",
         "begin / operand_.inner % operand_.size * 0"),
        ("FL_CALLED void stream(", "(count - i) * sizeof(T)", "0"),
    ),
    *cpp(
        "tensors.cpp", "loss options",
        ("TensorProblem::TensorProblem(const char* op, const Tensor& target", "leaves_out(options)", "false"),
    ),
    *cpp(
        "cpu/sums.h", "sums exact",
        ("FL_CALLED double fold(", "values[2 * i] + values[2 * i + 1]", "values[i] + values[count + i]"),
    ),
    *cpp(
        "cpu/dispatch.cpp", "sums exact loss",
        ("double ordered_sum(", "lanes[2 * i] + lanes[2 * i + 1]", "lanes[i] + lanes[left + i]"),
    ),
    *cpp(
        "cpu/memory.cpp", "faults memory",
        ("void* take_block(", "empty_cache()", "void()"),
    ),
    *cpp(
        "cpu/launch.cpp", "made_for loss",
        ("bool is_made(", "value != 0", "true"),
        ("void run(Problem& problem", "1 / divisor", "1.0"),
    ),
    *cpp(
        "cpu/linear_kernel.h", "linear",
        ("FL_FN void dots_of(", "lanes[r][0] + bias", "lanes[r][0]"),
        ("void run_parts(", "double(out[r])", "0.0"),
        ("void run_parts(", "pending >= flush_rows", "false"),
        ("FL_FN void scale_weight(", "factor * load(w + j)", "load(w + j)"),
    ),
    *cpp(
        "pairs.h", "pairs",
        ("FL_FN V add_pair(", "fma(grad, x, sums.grad_scale)", "fma(grad, z, sums.grad_scale)"),
        ("FL_FN uint32_t positive_after(", "positive + of.step < of.end", "true"),
    ),
    *cpp(
        "cpu/pairs_kernel.h", "pairs",
        ("void run_pairs_of(", "!(all - all == 0)", "false"),
    ),
    *cpp(
        "ops.h", "loss options",
        ("static Mean mean(", "double(on.problem.numel)", "1.0"),
    ),
]  # fmt: skip
