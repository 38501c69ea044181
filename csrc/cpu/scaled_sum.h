// The squared norms that the scales of a sum follow from, on the CPU, of gradients that are kept
// and of such that are not, over a range of examples or blocks of output channels: the caller
// brings the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/clipped_sum.h"
#include "cpu/dispatch.h"
#include "cpu/example_weight_grad.h"
#include "shared/grid.h"
#include "shared/scaled_sum.h"

namespace privimage::cpu {

template <typename Scalar>
inline double sum_of_squares(const Scalar* values, int64_t count) {
  return tile_sets<Scalar>()->squared_norm(values, count);
}

// Adds scaled values, in grid steps.
template <typename Scalar>
inline void add_scaled(const Scalar* values, int64_t count, double scale, int64_t* sums) {
  tile_sets<Scalar>()->add_scaled(values, count, scale, sums);
}

// Writes the squared norms of the rows begin … end - 1, of some ranges of columns together.
template <typename Scalar>
inline void squared_norms(const KeptParts<Scalar>& job, const std::vector<Columns>& columns,
                          double* squares, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Scalar* row = job.parts + i * job.stride;
    squares[i] = 0.0;
    for (const Columns& range : columns) {
      squares[i] += sum_of_squares(row + range.begin, range.end - range.begin);
    }
  }
}

// As `WriteRows`: adds the squares up.
template <typename Scalar>
struct AddSquares {
  static constexpr bool kWantsRows = false;
  double squares = 0.0;

  void expect(int64_t, int64_t, int64_t) const {}
  void tile(const Scalar* values, int64_t count) { squares += sum_of_squares(values, count); }
  void bias(int64_t, int64_t, const Scalar* values, int64_t count) {
    squares += sum_of_squares(values, count);
  }
};

// As `WriteRows`, and adds up the squares of what it writes.
template <typename Scalar>
struct MeasureRows {
  static constexpr bool kWantsRows = true;
  WriteRows<Scalar> rows;
  AddSquares<Scalar> sum{};

  void expect(int64_t example, int64_t place, int64_t count) const {
    rows.expect(example, place, count);
  }
  void weight(int64_t example, int64_t place, const Scalar* values, int64_t count) {
    rows.weight(example, place, values, count);
  }
  void tile(const Scalar* values, int64_t count) { sum.tile(values, count); }
  void bias(int64_t example, int64_t place, const Scalar* values, int64_t count) {
    rows.bias(example, place, values, count);
    sum.bias(example, place, values, count);
  }
};

// Writes the squared norm of each of the blocks begin … end - 1 of `example_weight_grad_blocks`,
// bias included where job.bias is not null; writes nothing else.
template <typename Scalar>
inline void example_weight_norms(const ExampleWeightGrad<Scalar>& job, double* squares,
                                 int64_t begin, int64_t end) {
  AddSquares<Scalar> sink;
  ExampleWeightGradBlocks<Scalar, AddSquares<Scalar>> blocks(job, *tile_sets<Scalar>(), sink);
  blocks.run(begin, end, [&](int64_t i) {
    squares[i] = sink.squares;
    sink.squares = 0.0;
  });
}

// `example_weight_grad` and `example_weight_norms` in one go, while the values are in the
// first-level cache.
template <typename Scalar>
inline void measured_weight_grad(const ExampleWeightGrad<Scalar>& job, double* squares,
                                 int64_t begin, int64_t end) {
  MeasureRows<Scalar> sink{WriteRows<Scalar>(job)};
  ExampleWeightGradBlocks<Scalar, MeasureRows<Scalar>> blocks(job, *tile_sets<Scalar>(), sink);
  blocks.run(begin, end, [&](int64_t i) {
    squares[i] = sink.sum.squares;
    sink.sum.squares = 0.0;
  });
}

// Adds the squares of a layer's blocks to those of each example, in their order.
inline void add_blocks(const double* of_blocks, int64_t blocks, int64_t examples, double* squares) {
  const int64_t each = examples > 0 ? blocks / examples : 0;
  for (int64_t i = 0; i < examples; ++i) {
    for (int64_t block = 0; block < each; ++block) squares[i] += of_blocks[i * each + block];
  }
}

}  // namespace privimage::cpu
