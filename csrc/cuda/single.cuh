// A layer with one output on CUDA: the input is read once from the device's memory, for the dot products and for the
// weight's gradient, and every sum has the order of linear.h, so that loss and all gradients have the CPU's bits.
#pragma once
#include "access.cuh"
#include "element.cuh"
#include "single.h"

namespace fused_logistic {

// What warps hand on to others, of the tile in the making and of the one before. C: the type of the losses.
template <class C>
struct Handed {
  enum Operand { kTarget, kPosWeight, kWeight, kMask, kGradOutput, kOperands };
  C operands[kOperands][2][kMaxTileRows];
  C logits[2][kMaxTileRows], terms[2][kMaxTileRows], factors[2][kMaxTileRows];
  C scale;
};

// The first `count` of a row's kColumns neighbours, zeros behind them.
template <class A, class T>
FL_DEVICE void load_columns(const T* data, int64_t count, bool whole, A (&out)[kColumns]) {
  if (whole && count >= kColumns) {
    load_pack(data, out);
  } else {
    load_some(data, count < kColumns ? int(count) : kColumns, out);
  }
}

template <Output kOutput, Terms kTerms, class C>
FL_DEVICE void evaluate_row(const ElementAccess<C>& row, const Settings<C>& settings) {
  evaluate_element<kOutput, Bce, kTerms, is_grouped<Bce>(kOutput, kTerms)>(row, settings);
}
template <Output kOutput, class C>
FL_DEVICE void evaluate_row(bool plain, const ElementAccess<C>& row, const Settings<C>& settings) {
  plain ? evaluate_row<kOutput, Terms::kPlain>(row, settings) : evaluate_row<kOutput, Terms::kAll>(row, settings);
}
template <class C>
FL_DEVICE void evaluate_row(Output output, bool plain, const ElementAccess<C>& row, const Settings<C>& settings) {
  switch (output) {
    case Output::kLossSum:
      return evaluate_row<Output::kLossSum>(plain, row, settings);
    case Output::kLossSumAndGrad:
      return evaluate_row<Output::kLossSumAndGrad>(plain, row, settings);
    case Output::kLoss:
      return evaluate_row<Output::kLoss>(plain, row, settings);
    default:
      return evaluate_row<Output::kGradLogits>(plain, row, settings);
  }
}

// T: the type of the input. kVectors: as in SinglePlan; where it is 0, a tile is the input itself.
template <class T, class C, int kVectors>
__global__ void __launch_bounds__(kSingleThreads, sizeof(C) == 8 ? 1 : 2) single_kernel(const SingleLaunch launch) {
  using A = typename Arithmetic<T>::Type;  // of the dot products
  using Shared = Handed<C>;
  constexpr bool kStaged = kVectors > 0;
  constexpr int kSlots = kStaged ? kVectors : 1, kLanesOfRow = int(kDotLanes) / kColumns;
  extern __shared__ __align__(16) char memory[];
  __shared__ Shared handed;
  const LinearProblem& problem = launch.problem;
  const SinglePlan& plan = launch.plan;
  const Problem& loss = problem.loss;
  const Output output = launch.output;
  const int t = int(threadIdx.x);
  using Index = std::conditional_t<kStaged, int, int64_t>;  // of columns
  const Index features = Index(problem.features), columns = Index(padded(problem.features));
  const T* const weight = static_cast<const T*>(problem.linear_weight);
  const int64_t part = blockIdx.x, begin = part * problem.rows_per_part, next = begin + problem.rows_per_part;
  const int rows = int((next < loss.numel ? next : loss.numel) - begin);
  const T* const input = static_cast<const T*>(problem.input) + begin * problem.row_stride;
  const int tile_bytes = plan.tile_rows * plan.row_bytes, tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
  const bool has_grad = output == Output::kLossSumAndGrad || output == Output::kGradLogits;

  const auto first_of = [&](int tile) { return begin + tile * plan.tile_rows; };
  const auto rows_of = [&](int tile) {
    const int left = rows - tile * plan.tile_rows;
    return left < plan.tile_rows ? left : plan.tile_rows;
  };
  const auto place_of = [&](int tile) { return memory + tile % kStages * tile_bytes; };
  const auto row_of = [&](int tile, int row) {
    if constexpr (kStaged) return reinterpret_cast<const T*>(place_of(tile) + row * plan.row_bytes);
    return input + (tile * plan.tile_rows + row) * problem.row_stride;
  };
  const auto load = [&](const T* row, Index column, A(&out)[kColumns]) {
    if constexpr (kStaged) {
      load_pack(row + column, out);
    } else {
      load_columns(row + column, features - column, plan.whole, out);
    }
  };
  A* const staged_weight = reinterpret_cast<A*>(memory + kStages * tile_bytes);
  const auto load_weight = [&](Index column, A(&out)[kColumns]) {
    if constexpr (kStaged) {
      load_pack(staged_weight + column, out);
    } else {
      load_columns(weight + column, features - column, false, out);
    }
  };
  if (t == 0) handed.scale = C(launch.count != nullptr ? 1 / *launch.count : loss.scale);
  if constexpr (kStaged) {
    for (Index j = t; j < columns; j += kSingleThreads) {
      staged_weight[j] = j < features ? to_arithmetic<A>(weight[j]) : A(0);
    }
  }

  // ---- The first warps: tiles into shared memory, and their dot products
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      const int per_chunk = plan.chunk_bytes > 0 ? plan.chunk_bytes : 16;
      const int per_row = int(columns * sizeof(T)) / per_chunk, count = rows_of(tile) * per_row;
      const T* const from = input + tile * plan.tile_rows * problem.row_stride;
      char* const to = place_of(tile);
      for (int i = t; i < count; i += kDotThreads) {
        const int row = int(quotient(uint32_t(i), plan.by_chunks)), chunk = i - row * per_row;
        const auto copy = [&](auto bytes) {
          constexpr int kBytes = decltype(bytes)::value;
          const int byte = chunk * kBytes, left = int(features * sizeof(T)) - byte;
          copy_async<kBytes>(to + row * plan.row_bytes + byte,
                             reinterpret_cast<const char*>(from + row * problem.row_stride) + byte,
                             left < 0        ? 0
                             : left < kBytes ? left
                                             : kBytes);
        };
        if (plan.chunk_bytes == 16) {
          copy(std::integral_constant<int, 16>{});
        } else if (plan.chunk_bytes == 8) {
          copy(std::integral_constant<int, 8>{});
        } else if (sizeof(T) >= 4 || plan.chunk_bytes == 4) {
          copy(std::integral_constant<int, 4>{});
        } else if constexpr (sizeof(T) < 4) {
          constexpr int kElements = 16 / int(sizeof(T));
          const T* const x = from + row * problem.row_stride;
          Pack<T, kElements> pack;
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            const int column = chunk * kElements + k;
            pack.elements[k] = column < features ? x[column] : T{};
          }
          *reinterpret_cast<Pack<T, kElements>*>(to + row * plan.row_bytes + chunk * 16) = pack;
        }
      }
    }
    end_group();
  };
  const A bias = launch.linear_bias != nullptr ? to_arithmetic<A>(*static_cast<const T*>(launch.linear_bias)) : A(0);
  const auto take_dots = [&](int tile) {
    const int count = rows_of(tile);
    for (int first = 0; first < count; first += kDotThreads / kLanesOfRow) {
      const int mine = first + t / kLanesOfRow, row = mine < count ? mine : count - 1;
      const T* const x = row_of(tile, row);
      A lanes[kColumns] = {};
#pragma unroll 4
      for (Index j = t % kLanesOfRow * kColumns; j < columns; j += Index(kDotLanes)) {
        A values[kColumns], factors[kColumns];
        load(x, j, values);
        load_weight(j, factors);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) lanes[k] = fma(values[k], factors[k], lanes[k]);
      }
#pragma unroll
      for (int half = kLanesOfRow / 2; half >= 1; half /= 2) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) lanes[k] += from_later_thread(lanes[k], half);
      }
      const A dot = ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) + bias;
      if (t % kLanesOfRow == 0 && mine < count) handed.logits[tile & 1][row] = C(dot);
    }
  };

  // ---- Their losses
  const Operand* const operands[] = {&loss.target, &loss.pos_weight, &loss.weight, &loss.mask, &loss.grad_output};
  const auto read_operands = [&](int tile) {
    for (int row = t % kWarpSize; row < rows_of(tile); row += kWarpSize) {
#pragma unroll
      for (int i = 0; i < Shared::kOperands; ++i) {
        const Operand& operand = *operands[i];
        C value[1] = {C(i != Shared::kTarget)};
        if (operand.data != nullptr) {
          const int64_t place = operand.size == 1 ? 0 : first_of(tile) + row;
          with_type(AnyTypes{}, operand.dtype, operand.data, [&](auto* data) { load_some(data + place, 1, value); });
        }
        handed.operands[i][tile & 1][row] = value[0];
      }
    }
  };
  const bool plain = terms_of(loss, output) == Terms::kPlain;
  const Settings<C> settings = settings_of<C>(loss);
  const auto take_losses = [&](int tile) {
    for (int row = t - kDotThreads - kSumThreads; row < rows_of(tile); row += kLossThreads) {
      const int slot = tile & 1;
      const auto operand = [&](int i) { return handed.operands[i][slot][row]; };
      const C factor = takes_grad_output(output) ? handed.scale * operand(Shared::kGradOutput) : handed.scale;
      C result = 0, term = 0;
      LossGroup<C> unused = {};
      const ElementAccess<C> element = {handed.logits[slot][row],
                                        operand(Shared::kTarget),
                                        operand(Shared::kPosWeight),
                                        operand(Shared::kWeight),
                                        operand(Shared::kMask),
                                        factor,
                                        result,
                                        term,
                                        unused};
      evaluate_row(output, plain, element, settings);
      handed.terms[slot][row] = term;
      handed.factors[slot][row] = result;
      if (output == Output::kLoss) {
        const C value[1] = {result};
        with_type(FloatingTypes{}, loss.out_dtype, loss.out,
                  [&](auto* out) { store_some(out + first_of(tile) + row, 1, value); });
      }
    }
  };
  double running = 0;  // of the last warp's first two threads: of the loss, and of the bias's gradient
  const auto add_losses = [&](int tile) {
    const C* const from = t % kWarpSize == 0 ? handed.terms[tile & 1] : handed.factors[tile & 1];
    const int count = rows_of(tile);
#pragma unroll 8
    for (int row = 0; row < count; ++row) running += double(from[row]);
  };

  // ---- The gradients
  A sums[kSlots][kColumns] = {};
  // A thread's own columns; in registers they would be in the way of all that the other warps compute.
  double* const totals = reinterpret_cast<double*>(staged_weight + columns);
  int pending = 0;  // rows in the sums that are not yet in the totals
  bool flushed = false;
  double* const part_totals = problem.grad_weight != nullptr ? problem.grad_weight + part * problem.features : nullptr;
  const Index first_column = (t - kDotThreads) * kColumns;
  constexpr Index kStep = kSumThreads * kColumns;
  const auto add_rows = [&](int tile, int row, int count, Index column, A(&sum)[kColumns]) {
#pragma unroll 4
    for (int r = row; r < row + count; ++r) {
      A values[kColumns];
      load(row_of(tile, r), column, values);
      const A factor = A(handed.factors[tile & 1][r]);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) sum[k] = fma(factor, values[k], sum[k]);
    }
  };
  const auto add_weight = [&](int tile) {
    const int in_tile = rows_of(tile);
    for (int row = 0; row < in_tile;) {
      const int left = int(plan.flush_rows) - pending, count = in_tile - row < left ? in_tile - row : left;
      const bool begins = pending == 0, ends = count == left || (tile == tiles - 1 && row + count == in_tile);
      if constexpr (kStaged) {
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          if (first_column + s * kStep >= features) break;
          add_rows(tile, row, count, first_column + s * kStep, sums[s]);
          if (!ends) continue;
          double total[kColumns] = {};
          double* const place = totals + first_column + s * kStep;
          if (flushed) load_pack(place, total);
#pragma unroll
          for (int k = 0; k < kColumns; ++k) total[k] += double(sums[s][k]), sums[s][k] = 0;
          store_pack(place, total);
        }
      } else {
        A* const scratch = static_cast<A*>(launch.scratch) + part * ((features + kColumns - 1) / kColumns * kColumns);
        for (Index column = first_column; column < features; column += kStep) {
          A sum[kColumns] = {};
          if (!begins) load_pack(scratch + column, sum);
          add_rows(tile, row, count, column, sum);
          if (!ends) {
            store_pack(scratch + column, sum);
            continue;
          }
          for (int k = 0; k < kColumns && column + k < features; ++k) {
            part_totals[column + k] = (flushed ? part_totals[column + k] : 0.0) + double(sum[k]);
          }
        }
      }
      flushed |= ends;
      pending = ends ? 0 : pending + count;
      row += count;
    }
  };
  const auto write_grad_input = [&](int tile) {
    T* const out = static_cast<T*>(problem.grad_input) + first_of(tile) * problem.features;
    const int in_tile = rows_of(tile);
    for (Index column = first_column; column < features; column += kStep) {
      A factors[kColumns], values[kColumns];
      load_weight(column, factors);
      for (int row = 0; row < in_tile; ++row) {
        const A factor = A(handed.factors[tile & 1][row]);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) values[k] = factor * factors[k];
        T* const place = out + row * problem.features + column;
        if (plan.whole_out) {
          store_pack(place, values);
        } else {
          store_some(place, features - column < kColumns ? int(features - column) : kColumns, values);
        }
      }
    }
  };

  // ---- The pipeline
  if (kStaged && t < kDotThreads) {
    for (int tile = 0; tile < kStages - 3; ++tile) fetch(tile);
  }
  for (int step = 0; step < tiles + 2; ++step) {
    if (kStaged && t < kDotThreads) wait_for_groups<kStages - 4>();
    __syncthreads();  // the tile is there, what the steps before handed on too, and nobody reads what is overwritten now
    if (t < kDotThreads) {
      if (kStaged) fetch(step + kStages - 3);
      if (step < tiles) take_dots(step);
    } else if (t < kDotThreads + kSumThreads) {
      if (step >= 2 && has_grad) {
        if (part_totals != nullptr) add_weight(step - 2);
        if (problem.grad_input != nullptr) write_grad_input(step - 2);
      }
    } else if (t < kDotThreads + kSumThreads + kLossThreads) {
      if (step >= 1 && step <= tiles) take_losses(step - 1);
    } else if (t < kSingleThreads - kWarpSize) {
      if (step < tiles) read_operands(step);
    } else if (step >= 2 && t < kSingleThreads - kWarpSize + 2) {
      add_losses(step - 2);
    }
  }
  if (t >= kSingleThreads - kWarpSize && t < kSingleThreads - kWarpSize + 2) {
    problem.loss_and_grad_bias[2 * part + t % kWarpSize] = running;
  }
  if (kStaged && part_totals != nullptr && t >= kDotThreads && t < kDotThreads + kSumThreads) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const Index column = first_column + s * kStep + k;
        if (column < features) part_totals[column] = totals[column];
      }
    }
  }
}

// A thread for every column of the weight's gradient, one for the loss and one for the bias's gradient.
constexpr int kSumsThreads = 64;
static __global__ void __launch_bounds__(kSumsThreads) single_sums_kernel(const SingleLaunch launch) {
  const LinearProblem& problem = launch.problem;
  const int64_t features = problem.features, i = int64_t(blockIdx.x) * kSumsThreads + threadIdx.x - 2;
  if (i >= (launch.grad_weight != nullptr ? features : 0)) return;
  const bool column = i >= 0;
  const double* const from = column ? problem.grad_weight + i : problem.loss_and_grad_bias + (i + 2);
  const int64_t stride = column ? features : 2;
  double sum = 0;
#pragma unroll 16
  for (int64_t part = 0; part < launch.plan.parts; ++part) sum += from[part * stride];
  const auto write = [&](DType dtype, void* to, int64_t place, double value) {
    if (to == nullptr) return;
    const double values[1] = {value};
    with_type(FloatingTypes{}, dtype, to, [&](auto* out) { store_some(out + place, 1, values); });
  };
  if (column) return write(problem.input_dtype, launch.grad_weight, i, sum);
  if (i == -1) return write(problem.input_dtype, launch.grad_bias, 0, sum);
  write(launch.loss_dtype, launch.loss, 0, sum / (launch.count != nullptr ? *launch.count : launch.divisor));
}

}  // namespace fused_logistic
