// The kernels of the norms and the scaled sum of kept gradients, as functions of a block. Both read
// every value once, and ask for several before they use the first: that, not arithmetic, is what
// fills a GPU's memory bus. A row has any number of values, so rows start anywhere and vectors of
// several values would not be aligned; neighbouring threads read neighbouring values instead.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/add_up.cuh"
#include "kernels/block.h"
#include "kernels/launch.h"
#include "kernels/scaled_sum.h"
#include "shared/bfloat16.h"
#include "shared/grid.h"
#include "shared/scaled_sum.h"

namespace privimage::cuda {

constexpr int kSumThreads = 256;
constexpr int kAhead = 8;  // values of a row that a thread asks for at a time
// And of a sum: from so many rows, for so many parameters of its own.
constexpr int kRows = 4, kColumns = 4;

constexpr int64_t kMostRanges = 64;  // of columns, in one launch

template <typename Scalar>
struct SquaredNorms {
  KeptParts<Scalar> kept;
  double* partial;      // [examples, pieces]
  int64_t pieces;       // of all launches
  int64_t first_piece;  // of this one
  Columns columns[kMostRanges];
};

struct RowSums {
  const double* partial;  // [rows, count]
  int64_t rows;
  int64_t count;
  double* sums;  // [rows]
};

template <typename Scalar>
struct ScaledSum {
  KeptParts<Scalar> kept;
  const double* scales;  // [examples]
  bool accumulate;       // add to what sum holds, instead of writing over it
  int64_t* sum;          // [parameters]
};

// Blocks: examples, and the pieces of a row.
inline LaunchShape squares_launch(int64_t examples, int64_t pieces) {
  return {examples, pieces, kSumThreads, kSumThreads * int64_t{sizeof(double)}};
}

// Calls launch(job, shape) for as many ranges of columns at a time as a job holds, until one
// returns an error other than 0; returns that.
template <typename Scalar, typename Launch>
int for_each_launch(const KeptParts<Scalar>& kept, const Columns* columns, int64_t count,
                    double* partial, Launch launch) {
  SquaredNorms<Scalar> job{kept, partial, squared_norm_pieces(columns, count), 0, {}};
  int error = 0;
  for (int64_t first = 0; first < count && error == 0; first += kMostRanges) {
    const int64_t some = std::min(count - first, kMostRanges);
    std::copy_n(columns + first, some, job.columns);
    const int64_t pieces = squared_norm_pieces(columns + first, some);
    error = launch(job, squares_launch(kept.examples, pieces));
    job.first_piece += pieces;
  }
  return error;
}
inline LaunchShape row_sums_launch(int64_t rows) {
  return {rows, 1, kSumThreads, kSumThreads * int64_t{sizeof(double)}};
}
inline LaunchShape sums_launch(int64_t parameters) {
  return {blocks_for(parameters, kColumns * kSumThreads), 1, kSumThreads, 0};
}

// The squares of one piece of a row: which columns they are is found range by range, for most
// launches have one.
template <typename Scalar>
PRIVIMAGE_DEVICE void write_squares(const Block& block, const SquaredNorms<Scalar>& job) {
  const KeptParts<Scalar>& kept = job.kept;
  const Scalar* row = kept.parts + block.x() * kept.stride;
  const Columns* columns = job.columns;
  int64_t piece = block.y();
  for (; piece >= squared_norm_pieces(*columns); ++columns) piece -= squared_norm_pieces(*columns);
  const int64_t first = columns->begin + piece * kPiece;
  const int64_t end = first + kPiece < columns->end ? first + kPiece : columns->end;
  double squares = 0.0;
  for (int64_t i = first + block.thread(); i < end; i += kAhead * kSumThreads) {
    Scalar values[kAhead];
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int64_t place = i + ahead * kSumThreads;
      values[ahead] = place < end ? row[place] : Scalar{};
    }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const double value = widen(values[ahead]);
      squares += value * value;
    }
  }
  const double sum = add_threads(block, squares, kSumThreads, 0);
  if (block.thread() != 0) return;
  job.partial[block.x() * job.pieces + job.first_piece + block.y()] = sum;
}

// One block a row.
PRIVIMAGE_DEVICE void add_row(const Block& block, const RowSums& job) {
  double sum = 0.0;
  for (int64_t i = block.thread(); i < job.count; i += kSumThreads) {
    sum += job.partial[block.x() * job.count + i];
  }
  sum = add_threads(block, sum, kSumThreads, 0);
  if (block.thread() == 0) job.sums[block.x()] = sum;
}

// grid_coordinate of a value, or 0 where the scale is: such an example may hold anything.
template <typename Scalar>
PRIVIMAGE_DEVICE int64_t coordinate(Scalar value, double scale) {
  return scale != 0.0 ? grid_coordinate(widen(value), scale) : 0;
}

// A thread has some parameters, so many that the rows' addresses and scales are a small share of
// its work; neighbouring threads read neighbouring values of each row. Integers, so no order to
// keep; one writer an element, so no atomics. An example of scale 0 is passed over, whatever it
// holds.
template <typename Scalar>
PRIVIMAGE_DEVICE void write_sums(const Block& block, const ScaledSum<Scalar>& job) {
  const KeptParts<Scalar>& kept = job.kept;
  const int64_t start = block.x() * kColumns * kSumThreads + block.thread();
  bool inside[kColumns];
  int64_t sums[kColumns];
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    inside[column] = start + column * kSumThreads < kept.parameters;
    sums[column] = job.accumulate && inside[column] ? job.sum[start + column * kSumThreads] : 0;
  }
  const auto add_rows = [&](auto count, int64_t first) {
    constexpr int kCount = decltype(count)::value;
    Scalar values[kCount][kColumns];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Scalar* row = kept.parts + (first + i) * kept.stride + start;
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        values[i][column] = inside[column] ? row[column * kSumThreads] : Scalar{};
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const double scale = job.scales[first + i];
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        sums[column] += coordinate(values[i][column], scale);
      }
    }
  };
  int64_t example = 0;
  for (; example + kRows <= kept.examples; example += kRows) {
    add_rows(std::integral_constant<int, kRows>{}, example);
  }
  for (; example < kept.examples; ++example) {
    add_rows(std::integral_constant<int, 1>{}, example);
  }
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    if (inside[column]) job.sum[start + column * kSumThreads] = sums[column];
  }
}

}  // namespace privimage::cuda
