// The scaled sum of gradients that are kept, on the CPU, and the squared norms that scales follow
// from, of such and of those that are not kept, over a range of parameters, examples or blocks of
// output channels: the caller brings the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/example_weight_grad.h"
#include "shared/scaled_sum.h"

namespace privimage::cpu {

// Examples whose rows pass by the sums at a time, each row a stream that the memory brings ahead:
// of more streams it loses track. Parameters of a block, whose sums stay in the second-level cache
// for the next examples.
constexpr int64_t kStreams = 8;
constexpr int64_t kBlock = 4096;

template <typename Scalar>
inline double sum_of_squares(const Scalar* values, int64_t count) {
  return tile_sets<Scalar>()->squared_norm(values, count);
}

// Adds scaled values, in grid steps.
template <typename Scalar>
inline void add_scaled(const Scalar* values, int64_t count, double scale, int64_t* sums) {
  tile_sets<Scalar>()->add_scaled(values, count, scale, sums);
}

// Writes the sums of the parameters begin … end - 1, or adds to them. An example of scale 0 is
// passed over.
template <typename Scalar>
inline void scaled_sum(const KeptParts<Scalar>& kept, const double* scales, bool accumulate,
                       int64_t* sums, int64_t begin, int64_t end) {
  const auto add_rows = tile_sets<Scalar>()->add_rows;
  const SumsAre written = kept.examples > kStreams ? SumsAre::kWritten : SumsAre::kStreamed;
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t count = std::min(kBlock, end - block);
    if (!accumulate && kept.examples == 0) std::fill_n(sums + block, count, int64_t{0});
    for (int64_t first = 0; first < kept.examples; first += kStreams) {
      const ScaledRows<Scalar> rows{kept.parts + first * kept.stride + block, kept.stride,
                                    scales + first, std::min(kStreams, kept.examples - first)};
      add_rows(rows, count, accumulate || first > 0 ? SumsAre::kAdded : written, sums + block);
    }
  }
  finish_streams();
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
