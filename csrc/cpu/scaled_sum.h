// Sums of examples' gradients with given scales on the CPU, of gradients that are kept and of such
// that are computed again; and the squared norms that scales follow from, over a range of examples,
// parameters or blocks of output channels: the caller brings the threads.
//
// What a block of `example_weight_grad.h` hands out is bitwise the same each time, so the norm is
// that of the very values that are added.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/clipped_sum.h"
#include "cpu/dispatch.h"
#include "cpu/example_weight_grad.h"
#include "shared/grid.h"
#include "shared/scaled_sum.h"

namespace privimage::cpu {

PRIVIMAGE_CLONES double sum_of_squares(const float* values, int64_t count) {
  return squared_norm(values, count);
}
PRIVIMAGE_CLONES double sum_of_squares(const double* values, int64_t count) {
  return squared_norm(values, count);
}

template <typename Scalar>
PRIVIMAGE_INLINE void add_scaled_loop(const Scalar* values, int64_t count, double scale,
                                      int64_t* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += grid_coordinate(values[i], scale);
}

// Adds scaled values, in grid steps.
PRIVIMAGE_CLONES void add_scaled(const float* values, int64_t count, double scale, int64_t* sums) {
  add_scaled_loop(values, count, scale, sums);
}
PRIVIMAGE_CLONES void add_scaled(const double* values, int64_t count, double scale, int64_t* sums) {
  add_scaled_loop(values, count, scale, sums);
}

// Writes the squared norms of the rows begin … end - 1.
template <typename Scalar>
inline void squared_norms(const KeptParts<Scalar>& job, double* squares, int64_t begin,
                          int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    squares[i] = sum_of_squares(job.parts + i * job.stride, job.parameters);
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

// As `WriteRows`: adds scaled values to the sums over examples.
template <typename Scalar>
struct AddScaled {
  static constexpr bool kWantsRows = true;
  const double* scales;  // [examples]
  int64_t* weight_sum;   // [groups * outputs, inputs, taps, taps]
  int64_t* bias_sum;     // [groups * outputs]

  void tile(const Scalar*, int64_t) const {}
  void expect(int64_t, int64_t, int64_t) const {}
  void weight(int64_t example, int64_t place, const Scalar* values, int64_t count) const {
    add_scaled(values, count, scales[example], weight_sum + place);
  }
  void bias(int64_t example, int64_t place, const Scalar* values, int64_t count) const {
    add_scaled(values, count, scales[example], bias_sum + place);
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

// Bytes of sums that stay in the second-level cache while the gradients of all examples pass by.
constexpr int64_t kSumBytes = 1 << 19;

// Adds the blocks begin … end - 1 of one example's to the sums, for each example in turn. Two
// threads with different blocks write different sums.
template <typename Scalar>
inline void recomputed_sum(const ExampleWeightGrad<Scalar>& job, AddScaled<Scalar> sums,
                           int64_t begin, int64_t end) {
  const ConvGeometry& shape = job.geometry;
  const int64_t blocks = shape.groups * blocks_a_group(shape);
  const int64_t weights = kBlockRows * shape.inputs * shape.height.taps * shape.width.taps;
  const int64_t together = kSumBytes / (weights * int64_t{sizeof(int64_t)} + 1) + 1;
  ExampleWeightGradBlocks<Scalar, AddScaled<Scalar>> worker(job, *tile_sets<Scalar>(), sums);
  for (int64_t start = begin; start < end; start += together) {
    const int64_t next = std::min(start + together, end);
    for (int64_t example = 0; example < shape.examples; ++example) {
      if (sums.scales[example] == 0.0) continue;
      worker.run(example * blocks + start, example * blocks + next);
    }
  }
}

}  // namespace privimage::cpu
