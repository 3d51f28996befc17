// The kernels of a tile of a layer's logits: in one pass its losses, the gradient in the logits' place, and the sums of the
// gradient's columns, which are the bias's. Each operand is read where it lies; elements have the bits of elements_kernel.
//
// The order of the sums, by the tile's sizes alone (tile_plan). A strip of strip_rows rows and 4 columns is a thread's.
// Losses without weights: 8 rows of it are a LossGroup, what the groups come to is added downwards in fp64; a row of four
// that would make it too large, or NaN by an infinite logit, is added by itself. With weights: in fp64, each column downwards.
// Then neighbours first over the block's 128 strips, of which 2^shift stand side by side.
// Columns: downwards in the type of the arithmetic, then the strips of a block downwards. What blocks come to is added in
// fp64 by finish_tile_kernel.
#pragma once
#include "kernels.cuh"
#include "tile.h"

namespace fused_logistic {

template <class C>
constexpr C kLargestLinear = sizeof(C) == 8 ? C(0x1p+1000) : C(0x1p+120f);

// A block's positives. They are few: those of a row are found by a search, and put into shared memory 8 rows at a time where
// there are any.
template <class C, bool kSparse>
struct Positives {
  int64_t first[kMostStripRows], last[kMostStripRows];  // of the strip's rows: places in col_indices
  bool any[kMostStripRows / kTileGroup];
  alignas(16) C targets[kTileGroup][kTileThreads * kPerThread];

  FL_METHOD static int64_t lower_bound(const int64_t* columns, int64_t first, int64_t last, int64_t column) {
    while (first < last) {
      const int64_t middle = first + (last - first) / 2;
      const bool before = columns[middle] < column;
      first = before ? middle + 1 : first;
      last = before ? last : middle;
    }
    return first;
  }
  // Of the rows from `row` on, those in the columns [begin, end).
  __device__ __forceinline__ void find(const TileLaunch& launch, int64_t row, int64_t begin, int64_t end) {
    const int t = int(threadIdx.x);
    if (t < launch.strip_rows) {
      first[t] = last[t] = 0;
      if (row + t < launch.rows) {
        const int64_t from = launch.crow_indices[row + t], to = launch.crow_indices[row + t + 1];
        first[t] = lower_bound(launch.col_indices, from, to, begin);
        last[t] = lower_bound(launch.col_indices, first[t], to, end);
      }
    }
    __syncthreads();
    if (t < launch.strip_rows / kTileGroup) {
      any[t] = false;
      for (int row_of_group = 0; row_of_group < kTileGroup; ++row_of_group) {
        const int i = t * kTileGroup + row_of_group;
        if (first[i] < last[i]) any[t] = true;
      }
    }
    __syncthreads();
  }
  // Whether a group of rows has any, which are then among its targets. All of the block ask.
  __device__ __forceinline__ bool gather(const TileLaunch& launch, int group, int64_t begin) {
    if (!any[group]) return false;
    const Operand& values = launch.problem.target;
    const C none[kPerThread] = {};
#pragma unroll
    for (int row = 0; row < kTileGroup; ++row) store_pack(targets[row] + threadIdx.x * kPerThread, none);
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < kTileGroup; ++row) {
      const int64_t end = last[group * kTileGroup + row];
      for (int64_t i = first[group * kTileGroup + row] + threadIdx.x; i < end; i += kTileThreads) {
        with_type(AnyTypes{}, values.dtype, values.data,
                  [&](auto* data) { targets[row][launch.col_indices[i] - begin] = to_arithmetic<C>(data[i]); });
      }
    }
    __syncthreads();
    return true;
  }
  __device__ __forceinline__ void read(int row, C (&out)[kPerThread]) const {
    load_pack(targets[row] + threadIdx.x * kPerThread, out);
  }
};
template <class C>
struct Positives<C, false> {
  FL_METHOD void find(const TileLaunch&, int64_t, int64_t, int64_t) const {}
  FL_METHOD bool gather(const TileLaunch&, int, int64_t) const { return false; }
  FL_METHOD void read(int, C (&)[kPerThread]) const {}
};

// As `shape`: how many rows are read before the first is computed, and blocks of a multiprocessor.
template <class L, Terms kTerms, class T>
constexpr Shape tile_shape() {
  if (!T::kTyped) return {1, 2};
  if (sizeof(typename T::C) == 8) return {1, 4};
  return {1, kTerms == Terms::kOptions ? 7 : 8};
}

// kSparse: the target is sparse; in a General kernel it may be.
template <Output kOutput, class L, Terms kTerms, class T, bool kSparse>
__global__ void __launch_bounds__(kTileThreads, (tile_shape<L, kTerms, T>().blocks))
    tile_kernel(const TileLaunch launch) {
  using C = typename T::C;
  constexpr int N = kPerThread, kRows = tile_shape<L, kTerms, T>().rows;
  constexpr bool kGrouped = is_grouped<L>(kOutput, kTerms), kHasGrad = kOutput != Output::kLoss;
  const Problem& problem = launch.problem;
  const Lies& lies = launch.lies;
  using Factor = Source<C, typename T::Factor, true>;
  const C grad_output = Factor::make(problem.grad_output, C(1)).value;
  const C weight = Factor::make(problem.weight, C(1)).value, pos_weight = Factor::make(problem.pos_weight, C(1)).value;
  const C target = Source<C, typename T::Target, true>::make(problem.target, C(0)).value;
  const C mask = Source<C, typename T::Mask, true>::make(problem.mask, C(1)).value;
  C scale = C(launch.count != nullptr ? 1 / *launch.count : problem.scale);
  if constexpr (kOutput == Output::kLossSumAndGrad) scale = scale * grad_output;
  const Settings<C> settings = settings_of<C>(problem);

  const int t = int(threadIdx.x), width = 1 << launch.shift, strips = kTileThreads >> launch.shift;
  const int64_t row_block = blockIdx.x / launch.column_blocks, column_block = blockIdx.x % launch.column_blocks;
  const int64_t first_column = column_block * width * N, column = first_column + (t & (width - 1)) * N;
  const int count = launch.columns - column < N ? int(launch.columns - column) : N;  // of columns; < 0: none
  const int64_t first_row = (row_block * strips + (t >> launch.shift)) * launch.strip_rows;
  const int64_t next_row = first_row + launch.strip_rows, end_row = next_row < launch.rows ? next_row : launch.rows;

  __shared__ Positives<C, kSparse> positives;
  const bool sparse = kSparse && (T::kTyped || launch.crow_indices != nullptr);
  const int64_t begin = launch.first_column + first_column;
  if (sparse) positives.find(launch, first_row, begin, begin + width * N);

  Sums<C, kGrouped> sums;
  C columns[N] = {};
  double sum = 0;
  bool has_positives = false;
  const auto read = [&](auto whole, int64_t row, int row_of_group, Elements<C>& of) {
    constexpr bool kWhole = decltype(whole)::value;
    const auto load = [&](auto types, const Operand& operand, const Lie& lie, C value, C(&out)[N], auto full) {
      if (kWhole && decltype(full)::value) {
        return with_type(types, operand.dtype, operand.data,
                         [&](auto* data) { load_pack(data + row * lie.row + column, out); });
      }
      if (lie.reading == Reading::kConstant) {
#pragma unroll
        for (int k = 0; k < N; ++k) out[k] = value;
        return;
      }
      with_type(types, operand.dtype, operand.data, [&](auto* data) {
        data += row * lie.row + column * lie.column;
        if (kWhole && lie.reading == Reading::kFull) {
          load_pack(data, out);
        } else {
#pragma unroll
          for (int k = 0; k < N; ++k) out[k] = kWhole || k < count ? to_arithmetic<C>(data[k * lie.column]) : C(0);
        }
      });
    };
    // Loads that nothing depends on follow each other: a branch after one, to what it is converted in, would wait for it.
    const std::true_type vectors;
    [[maybe_unused]] const std::false_type any;
    load(typename T::Logits{}, problem.logits, lies.logits, C(0), of.z, vectors);
    if (!sparse) {
      load(typename T::Target{}, problem.target, lies.target, target, of.y, vectors);
    } else if (has_positives) {
      positives.read(row_of_group, of.y);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) of.y[k] = 0;
    }
    if constexpr (has_weights(kTerms)) {
      load(typename T::Factor{}, problem.pos_weight, lies.pos_weight, pos_weight, of.p, any);
      load(typename T::Factor{}, problem.weight, lies.weight, weight, of.w, any);
    }
    if constexpr (has_options(kTerms)) load(typename T::Mask{}, problem.mask, lies.mask, mask, of.kept, any);
    if constexpr (takes_grad_output(kOutput)) {
      load(typename T::Factor{}, problem.grad_output, lies.grad_output, grad_output, of.factor, any);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) of.factor[k] = takes_grad_output(kOutput) ? scale * of.factor[k] : scale;
  };
  const auto compute = [&](auto whole, int64_t row, const Elements<C>& of) {
    C values[N];
    [[maybe_unused]] const Sums<C, kGrouped> before = sums;
    evaluate_pack<kOutput, L, kTerms, false>(of, count, settings, values, sums);
    if constexpr (kGrouped) {
      bool fits = true;
#pragma unroll
      for (int k = 0; k < N; ++k) fits &= minus_absolute(sums.lanes[k].linear) > -kLargestLinear<C>;
      if (!fits) {
        sums = before;
        Sums<C, false> alone;
        C unused[N];
        evaluate_pack<Output::kLossSum, L, kTerms, true>(of, count, settings, unused, alone);
        sum += (alone.lanes[0] + alone.lanes[1]) + (alone.lanes[2] + alone.lanes[3]);
      }
    }
    if constexpr (kHasGrad) {
#pragma unroll
      for (int k = 0; k < N; ++k) columns[k] += values[k];
    }
    if (problem.out == nullptr) return;
    // a gradient stands where the logits were
    with_type(typename T::Logits{}, problem.out_dtype, kHasGrad ? const_cast<void*>(problem.logits.data) : problem.out,
              [&](auto* data) {
                data += row * (kHasGrad ? lies.logits : lies.out).row + column;
                if constexpr (decltype(whole)::value) {
                  store_pack(data, values);
                } else {
                  store_some(data, count, values);
                }
              });
  };
  const auto is_full = [](const Lie& lie) { return lie.reading == Reading::kFull; };
  const bool whole = T::kTyped && count == N && is_full(lies.logits) && (sparse || is_full(lies.target));
#pragma unroll 1
  for (int64_t row = first_row; row < end_row; row += kTileGroup) {
    if (sparse) has_positives = positives.gather(launch, int(row - first_row) / kTileGroup, begin);
    if (whole && row + kTileGroup <= end_row) {
#pragma unroll 1
      for (int i = 0; i < kTileGroup; i += kRows) {
        Elements<C> of[kRows];
#pragma unroll
        for (int j = 0; j < kRows; ++j) read(std::true_type{}, row + i + j, i + j, of[j]);
#pragma unroll
        for (int j = 0; j < kRows; ++j) compute(std::true_type{}, row + i + j, of[j]);
      }
    } else if (count > 0) {
#pragma unroll 1
      for (int i = 0; i < kTileGroup && row + i < end_row; ++i) {
        Elements<C> of;
        read(std::false_type{}, row + i, i, of);
        compute(std::false_type{}, row + i, of);
      }
    }
    if constexpr (kGrouped) {
      const auto& lanes = sums.lanes;
      sum += double(loss(joined(joined(lanes[0], lanes[1]), joined(lanes[2], lanes[3]))));
      sums = {};
    }
  }

  if (has_sum(kOutput) && launch.loss_sums != nullptr) {
    if constexpr (kGrouped) {
      double sum_of_thread[1] = {sum};
      sum = fold<kTileThreads>(sum_of_thread);
    } else if constexpr (has_sum(kOutput)) {
      sum = fold<kTileThreads>(sums.lanes);
    }
    if (t == 0) launch.loss_sums[blockIdx.x] = sum;
  }
  if (kHasGrad && launch.column_sums != nullptr) {
    __shared__ C of_strips[kTileThreads * N];
    C* const out = static_cast<C*>(launch.column_sums) + row_block * launch.columns;
#pragma unroll
    for (int k = 0; k < N; ++k) of_strips[t * N + k] = columns[k];
    __syncthreads();
    for (int i = t; i < width * N && first_column + i < launch.columns; i += kTileThreads) {
      C of_column = of_strips[i];
      for (int strip = 1; strip < strips; ++strip) of_column += of_strips[strip * width * N + i];
      out[first_column + i] = of_column;
    }
  }
}

// The sums of the blocks, added to what there is. Losses: kLanes of them side by side, each lane downwards, then neighbours
// first. Columns: 32 side by side, each downwards, then one after the other.
template <class C>
__global__ void __launch_bounds__(kLanes) finish_tile_kernel(const TileLaunch launch) {
  constexpr int kLines = int(kLanes) / kFinishColumns;
  const int t = int(threadIdx.x), x = t % kFinishColumns, y = t / kFinishColumns;
  if (blockIdx.x == 0) {
    if (launch.loss_sum == nullptr) return;
    double lane[1] = {0};
    const int64_t blocks = launch.row_blocks * launch.column_blocks;
    for (int64_t i = t; i < blocks; i += kLanes) lane[0] += launch.loss_sums[i];
    const double sum = fold<int(kLanes)>(lane);
    if (t == 0) *launch.loss_sum += sum;
    return;
  }
  __shared__ double lines[kLines][kFinishColumns];
  const int64_t column = int64_t(blockIdx.x - 1) * kFinishColumns + x;
  double sum = 0;
  if (column < launch.columns) {
    for (int64_t row = y; row < launch.row_blocks; row += kLines) {
      sum += double(static_cast<const C*>(launch.column_sums)[row * launch.columns + column]);
    }
  }
  lines[y][x] = sum;
  __syncthreads();
  if (y > 0 || column >= launch.columns) return;
  for (int line = 1; line < kLines; ++line) sum += lines[line][x];
  with_type(Types<double, float>{}, launch.bias_dtype, launch.bias_sum,
            [&](auto* data) { data[column] = std::remove_pointer_t<decltype(data)>(double(data[column]) + sum); });
}

}  // namespace fused_logistic
