// A layer with any number of labels: torch's matrix products around the elementwise kernels, a chunk of the logits at a
// time, so that the logits are never whole. On the CPU the kernels work in place on the chunk; elsewhere the ops do.
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "cpu/memory.h"
#include "handles.h"
#include "linear.h"
#include "parallel.h"

namespace fused_logistic {
namespace {

// A chunk of the logits.
struct Tile {
  int64_t row, rows, label, labels;
};

// How a matrix is cut into tiles of at most `elements`. The longer side is cut first; a side is cut below kNarrow only
// where nothing else is left, since products with a narrow side are slow.
constexpr int64_t kNarrow = 1024;
struct Tiling {
  int64_t rows, labels;
  Tiling(int64_t all_rows, int64_t all_labels, int64_t elements)
      : rows(std::max<int64_t>(all_rows, 1)), labels(std::max<int64_t>(all_labels, 1)) {
    int64_t &longer = labels >= rows ? labels : rows, &shorter = labels >= rows ? rows : labels;
    longer = std::clamp(elements / shorter, std::min({longer, kNarrow, elements}), longer);
    shorter = std::clamp<int64_t>(elements / longer, 1, shorter);
  }
};

Tensor part_of(const Tensor& matrix, const Tile& tile) {
  const Tensor part = matrix.size(0) == 1 ? matrix : matrix.narrow(0, tile.row, tile.rows);
  return part.size(1) == 1 ? part : part.narrow(1, tile.label, tile.labels);
}
OptionalTensor part_of(const OptionalTensor& matrix, const Tile& tile) {
  return matrix.has_value() ? OptionalTensor(part_of(*matrix, tile)) : std::nullopt;
}
// The elements of a broadcast matrix at the given places.
Tensor gather(const Tensor& matrix, const Tensor& row, const Tensor& column) {
  const auto index = [](const Tensor& i, int64_t size) { return size == 1 ? at::zeros_like(i) : i; };
  return matrix.index({index(row, matrix.size(0)), index(column, matrix.size(1))});
}
OptionalTensor gather(const OptionalTensor& matrix, const Tensor& row, const Tensor& column) {
  return matrix.has_value() ? OptionalTensor(gather(*matrix, row, column)) : std::nullopt;
}

class Chunks {
 public:
  Chunks(const Layer& layer, GradMask mask)
      : layer_(layer),
        a_(layer.arguments),
        mask_(mask),
        type_(a_.input.scalar_type()),
        tiling_(
            layer.rows, layer.labels,
            std::max<int64_t>(a_.chunk_bytes.value_or(default_chunk_bytes(a_.input)) / a_.input.element_size(), 1)) {}

  LinearResult run() {
    if (layer_.sparse) {
      positives_.emplace(a_, layer_.rows, layer_.labels);
      sort_by_tile();
      background_ = at::zeros({1, 1}, layer_.target.options());
    }
    has_loss_ = !layer_.grad_output.has_value();
    scale_ = 1 / mean_count(layer_, positives_.has_value() ? &*positives_ : nullptr);
    allocate();
    for (int64_t label = 0; label < layer_.labels; label += tiling_.labels) {
      for (int64_t row = 0; row < layer_.rows; row += tiling_.rows) {
        one({row, std::min(tiling_.rows, layer_.rows - row), label, std::min(tiling_.labels, layer_.labels - label)});
      }
      finish_labels(label, std::min(tiling_.labels, layer_.labels - label));
    }
    if (mask_[0] && grad_input_.scalar_type() != type_) result_.grad_input = grad_input_.to(type_);
    if (has_loss_ && a_.reduction != at::Reduction::None) {
      result_.loss = is_cpu() ? at::scalar_tensor(sum_ * scale_, options(at::kDouble)) : device_sum_ * scale_;
    }
    return result_;
  }

 private:
  bool is_cpu() const { return a_.input.is_cpu(); }
  at::TensorOptions options(at::ScalarType type) const { return a_.input.options().dtype(type); }
  Tensor empty(int64_t rows, int64_t columns, at::ScalarType type) const {
    return is_cpu() ? empty_cpu({rows, columns}, {columns, 1}, type) : at::empty({rows, columns}, options(type));
  }
  bool has_grad() const { return layer_.want_grad(mask_); }
  // Where several chunks' products add up, 16-bit types are added up in fp32: each product is rounded once.
  at::ScalarType sum_type(int64_t products) const {
    return products > 1 && c10::elementSize(type_) == 2 ? at::kFloat : type_;
  }

  void allocate() {
    logits_ = empty(tiling_.rows * tiling_.labels, 1, type_).view(-1);
    const int64_t along_rows = (layer_.rows + tiling_.rows - 1) / tiling_.rows;
    const int64_t along_labels = (layer_.labels + tiling_.labels - 1) / tiling_.labels;
    if (mask_[0]) {
      grad_input_ = empty(layer_.rows, layer_.features, sum_type(along_labels));
      result_.grad_input = grad_input_;
      if (along_labels == 0) grad_input_.zero_();
    }
    if (mask_[1]) {
      result_.grad_weight = empty(layer_.labels, layer_.features, type_);
      if (along_rows == 0) result_.grad_weight.zero_();
      if (sum_type(along_rows) != type_) grad_weight_sum_ = empty(tiling_.labels, layer_.features, at::kFloat);
    }
    if (mask_[2]) {
      result_.grad_bias = at::zeros({layer_.labels}, options(type_));
      grad_bias_sum_ = at::zeros({tiling_.labels}, options(c10::elementSize(type_) == 2 ? at::kFloat : type_));
    }
    if (has_loss_ && a_.reduction == at::Reduction::None) {
      result_.loss = empty(layer_.rows, layer_.labels, loss_dtype(a_));
    }
    if (!is_cpu()) device_sum_ = at::zeros({}, options(at::kDouble));
  }

  // into = a b, or += a b after the first; into may be of a wider type.
  static void add_product(Tensor into, const Tensor& a, const Tensor& b, bool first) {
    if (into.scalar_type() == a.scalar_type()) {
      first ? at::mm_out(into, a, b) : into.addmm_(a, b);
    } else {
      const Tensor product = at::mm(a, b);
      first ? into.copy_(product) : into.add_(product);
    }
  }

  void one(const Tile& tile) {
    Tensor logits = logits_.narrow(0, 0, tile.rows * tile.labels).view({tile.rows, tile.labels});
    const Tensor input = layer_.input.narrow(0, tile.row, tile.rows);
    const Tensor linear_weight = layer_.linear_weight.narrow(0, tile.label, tile.labels);
    if (layer_.bias.has_value()) {
      at::addmm_out(logits, layer_.bias->narrow(0, tile.label, tile.labels), input, linear_weight.t());
    } else {
      at::mm_out(logits, input, linear_weight.t());
    }
    const Tensor grad = elementwise(logits, tile);
    if (mask_[0]) add_product(grad_input_.narrow(0, tile.row, tile.rows), grad, linear_weight, tile.label == 0);
    if (mask_[1]) {
      const Tensor sum =
          grad_weight_sum_.defined() ? grad_weight_sum_ : result_.grad_weight.narrow(0, tile.label, tile.labels);
      add_product(sum.narrow(0, 0, tile.labels), grad.t(), input, tile.row == 0);
    }
    if (mask_[2]) {
      grad_bias_sum_.narrow(0, 0, tile.labels).add_(grad.sum(0, /*keepdim=*/false, grad_bias_sum_.scalar_type()));
    }
  }

  void finish_labels(int64_t label, int64_t labels) {
    if (mask_[1] && grad_weight_sum_.defined()) {
      result_.grad_weight.narrow(0, label, labels).copy_(grad_weight_sum_.narrow(0, 0, labels));
    }
    if (mask_[2]) {
      result_.grad_bias.narrow(0, label, labels).copy_(grad_bias_sum_.narrow(0, 0, labels));
      grad_bias_sum_.zero_();
    }
  }

  // ---- The elementwise step -------------------------------------------------------------------------------------

  // Adds the chunk's loss to the sum, or writes its elements; returns the gradient for the logits, in their place on
  // the CPU.
  Tensor elementwise(Tensor& logits, const Tile& tile) {
    if (!positives_.has_value()) return dense(logits, part_of(layer_.target, tile), tile);
    const int64_t index = tile.row / tiling_.rows + tile.label / tiling_.labels * tiles_along_rows_;
    const int64_t begin = tile_begin_[index], count = tile_begin_[index + 1] - begin;
    if (count == 0) return dense(logits, background_.expand({tile.rows, tile.labels}), tile);
    return sparse(logits, tile, positives_->row.narrow(0, begin, count), positives_->column.narrow(0, begin, count),
                  positives_->value.narrow(0, begin, count));
  }

  Arguments arguments(const Tensor& logits, const Tensor& target, const OptionalTensor& weight,
                      const OptionalTensor& pos_weight) const {
    return {logits, target, weight, pos_weight, none_, at::Reduction::Sum, a_.label_smoothing, a_.ignore_index};
  }

  Tensor dense(Tensor& logits, const Tensor& target, const Tile& tile) {
    const OptionalTensor weight = part_of(layer_.weight, tile), pos_weight = part_of(layer_.pos_weight, tile);
    const OptionalTensor grad_output = part_of(layer_.grad_output, tile);
    Tensor losses;
    if (result_.loss.defined()) losses = part_of(result_.loss, tile);
    if (!is_cpu()) return by_ops(logits, target, weight, pos_weight, grad_output, losses);
    const Output output = losses.defined() ? Output::kLoss
                          : !has_loss_     ? Output::kGradLogits
                          : has_grad()     ? Output::kLossSumAndGrad
                                           : Output::kLossSum;
    sum_ += tile.labels == layer_.labels || tile.rows == 1
                ? whole(arguments(logits, target, weight, pos_weight), grad_output, losses, output)
                : by_rows(arguments(logits, target, weight, pos_weight), grad_output, losses, output);
    return logits;
  }

  double whole(const Arguments& arguments, const OptionalTensor& grad_output, const Tensor& losses, Output output) {
    Iteration iteration(arguments);
    Problem& problem = iteration.problem;
    if (grad_output.has_value()) iteration.set_grad_output(*grad_output);
    problem.scale = scale_;
    const Tensor& out = losses.defined() ? losses : arguments.logits;
    problem.out = out.mutable_data_ptr();
    problem.out_dtype = dtype_of(out.scalar_type());
    return fused_logistic::run(problem, output);
  }

  // A block of columns: its rows are dense, so nothing is copied.
  double by_rows(const Arguments& a, const OptionalTensor& grad_output, const Tensor& losses, Output output) {
    const int64_t rows = a.logits.size(0), columns = a.logits.size(1);
    std::vector<Tensor> owned;
    const auto operand = [&](const Tensor& given) -> RowOperand {
      Tensor matrix = given;
      if (matrix.size(1) > 1 && matrix.stride(1) > 1) owned.push_back(matrix = matrix.contiguous());
      const bool constant = matrix.size(1) == 1 || matrix.stride(1) == 0;
      return {{matrix.const_data_ptr(), dtype_of(matrix.scalar_type()), 1, constant ? 1 : columns},
              matrix.size(0) == 1 ? 0 : matrix.stride(0) * int64_t(matrix.element_size())};
    };
    const auto first = [](const OptionalTensor& t) { return t.has_value() ? OptionalTensor(t->narrow(0, 0, 1)) : t; };
    const Tensor logits_row = a.logits.narrow(0, 0, 1), target_row = a.target.narrow(0, 0, 1);
    const OptionalTensor weight_row = first(a.weight), pos_weight_row = first(a.pos_weight);
    const Iteration iteration(arguments(logits_row, target_row, weight_row, pos_weight_row));  // checks, sets options
    RowsProblem problem;
    problem.row = iteration.problem;
    problem.rows = rows;
    problem.logits = operand(a.logits);
    problem.target = operand(a.target);
    if (a.weight.has_value()) problem.weight = operand(*a.weight);
    if (a.pos_weight.has_value()) problem.pos_weight = operand(*a.pos_weight);
    if (grad_output.has_value()) problem.grad_output = operand(*grad_output);
    problem.row.scale = scale_;
    const Tensor& out = losses.defined() ? losses : a.logits;
    problem.row.out = out.mutable_data_ptr();
    problem.row.out_dtype = dtype_of(out.scalar_type());
    problem.out_step = out.stride(0) * int64_t(out.element_size());
    return run_rows(problem, output);
  }

  // What the gradient for given logits is multiplied by, as the kernels make it.
  Tensor factor(const OptionalTensor& grad_output, bool is_double) const {
    const auto type = is_double ? at::kDouble : at::kFloat;
    const Tensor scale = at::full({}, scale_, options(type));
    return grad_output.has_value() ? grad_output->to(type) * scale : scale;
  }

  Tensor by_ops(const Tensor& logits, const Tensor& target, const OptionalTensor& weight,
                const OptionalTensor& pos_weight, const OptionalTensor& grad_output, const Tensor& losses) {
    const auto& a = a_;
    const auto arguments = [&](auto&& op, auto... first) {
      return [&, first...](int64_t reduction, auto... last) {
        return op.call(first..., logits, target, weight, pos_weight, none_, reduction, a.label_smoothing,
                       a.ignore_index, last..., std::nullopt, std::nullopt);
      };
    };
    if (losses.defined()) {
      losses.copy_(arguments(bce_op())(at::Reduction::None, DTypeArgument(losses.scalar_type())));
    } else if (has_loss_) {
      const Tensor sum = arguments(bce_op())(at::Reduction::Sum, DTypeArgument(at::kDouble));
      is_cpu() ? void(sum_ += sum.item<double>()) : void(device_sum_ += sum);
    }
    if (!has_grad()) return {};
    const bool is_double = logits.scalar_type() == at::kDouble || target.scalar_type() == at::kDouble;
    return arguments(bce_backward_op(), factor(grad_output, is_double))(at::Reduction::Sum, int64_t(Wrt::kLogits));
  }

  // ---- Sparse targets -------------------------------------------------------------------------------------------

  // All but the positives have the target 0. The positives' logits are taken out, and in their place stands one whose
  // loss and gradient for the target 0 are exactly 0 (with label smoothing: whose loss is known). Then the positives'
  // own results are put in. Nothing but the positives is touched twice.
  Tensor sparse(Tensor& logits, const Tile& tile, const Tensor& row, const Tensor& column, const Tensor& value) {
    const Tensor place = (row - tile.row) * tile.labels + (column - tile.label);
    const OptionalTensor weight = gather(layer_.weight, row, column),
                         pos_weight = gather(layer_.pos_weight, row, column);
    const OptionalTensor grad_output = gather(layer_.grad_output, row, column);
    const bool smooth = a_.label_smoothing != 0;
    const double neutral = smooth ? 0 : -std::numeric_limits<double>::infinity();
    Tensor all = logits.view(-1);
    const Tensor logits_there = all.index_select(0, place);
    all.index_fill_(0, place, neutral);
    Tensor grad = dense(logits, background_.expand({tile.rows, tile.labels}), tile);
    Tensor losses;
    if (result_.loss.defined()) losses = at::empty({place.numel()}, options(result_.loss.scalar_type()));
    if (smooth && has_loss_ && !losses.defined()) subtract_neutral(logits_there, value, weight, pos_weight);
    const Tensor grad_there = by_ops(logits_there, value, weight, pos_weight, grad_output, losses);
    if (losses.defined()) result_.loss.index_put_({row, column}, losses);
    if (grad_there.defined()) grad.view(-1).index_copy_(0, place, grad_there);
    return grad;
  }

  void subtract_neutral(const Tensor& logits, const Tensor& value, const OptionalTensor& weight,
                        const OptionalTensor& pos_weight) {
    const Tensor sum =
        bce_op().call(at::zeros_like(logits), at::zeros_like(value), weight, pos_weight, none_, at::Reduction::Sum,
                      a_.label_smoothing, a_.ignore_index, at::kDouble, std::nullopt, std::nullopt);
    is_cpu() ? void(sum_ -= sum.item<double>()) : void(device_sum_ -= sum);
  }

  // The positives of a tile side by side, in the order of the tiles.
  void sort_by_tile() {
    Positives& p = *positives_;
    tiles_along_rows_ = (layer_.rows + tiling_.rows - 1) / tiling_.rows;
    const int64_t along_labels = (layer_.labels + tiling_.labels - 1) / tiling_.labels;
    const Tensor tile =
        at::floor_divide(p.row, tiling_.rows) + at::floor_divide(p.column, tiling_.labels) * tiles_along_rows_;
    const auto [sorted, order] = at::sort(tile, /*stable=*/std::optional<bool>(true), /*dim=*/0, /*descending=*/false);
    p.row = p.row.index_select(0, order);
    p.column = p.column.index_select(0, order);
    p.value = p.value.index_select(0, order);
    const Tensor bounds =
        at::searchsorted(sorted, at::arange(tiles_along_rows_ * along_labels + 1, sorted.options())).cpu();
    tile_begin_.assign(bounds.const_data_ptr<int64_t>(), bounds.const_data_ptr<int64_t>() + bounds.numel());
  }

  const Layer& layer_;
  const LinearArguments& a_;
  const GradMask mask_;
  const at::ScalarType type_;
  const Tiling tiling_;
  const OptionalTensor none_;
  std::optional<Positives> positives_;
  int64_t tiles_along_rows_ = 0;
  std::vector<int64_t> tile_begin_;  // into positives_
  Tensor background_;                // the target of all that is not positive
  bool has_loss_ = true;
  double scale_ = 1;
  Tensor logits_;      // the chunk
  double sum_ = 0;     // of the losses on the CPU
  Tensor device_sum_;  // elsewhere
  Tensor grad_input_, grad_weight_sum_, grad_bias_sum_;
  LinearResult result_;
};

}  // namespace

LinearResult chunked(const Layer& layer, GradMask mask) { return Chunks(layer, mask).run(); }

}  // namespace fused_logistic
