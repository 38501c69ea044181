// The per-example gradient of an embedding table on the CPU, over a range of examples or columns:
// the caller brings the threads. As a table; or by entry, for norms and sums that need no table,
// since all but the rows that an example read are zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cpu/scaled_sum.h"
#include "cpu/scratch.h"
#include "shared/example_embedding_grad.h"

namespace privimage::cpu {

// Writes the tables of the examples begin … end - 1. What is read several times adds up in order.
template <typename Scalar>
inline void example_embedding_grad(const ExampleEmbeddingGrad<Scalar>& job, int64_t begin,
                                   int64_t end) {
  for (int64_t example = begin; example < end; ++example) {
    Wide<Scalar>* table = job.weight + example * job.weight_stride;
    if (!job.accumulate) std::fill_n(table, job.entries * job.width, Wide<Scalar>(0));
    for (int64_t i = example * job.positions; i < (example + 1) * job.positions; ++i) {
      if (!adds(job, job.indices[i])) continue;
      Wide<Scalar>* to = table + job.indices[i] * job.width;
      for (int64_t c = 0; c < job.width; ++c) to[c] += widen(job.grad[i * job.width + c]);
    }
  }
}

// Writes into `order` [examples, positions] the positions of the examples begin … end - 1, sorted
// by what was read there; what was read several times stays in its order.
template <typename Scalar>
inline void sort_by_entry(const ExampleEmbeddingGrad<Scalar>& job, int64_t* order, int64_t begin,
                          int64_t end) {
  for (int64_t example = begin; example < end; ++example) {
    const int64_t* read = job.indices + example * job.positions;
    int64_t* mine = order + example * job.positions;
    std::iota(mine, mine + job.positions, int64_t{0});
    std::sort(mine, mine + job.positions,
              [&](int64_t i, int64_t j) { return read[i] != read[j] ? read[i] < read[j] : i < j; });
  }
}

// Calls body(entry, values) for each entry that an example read, with the columns first … last - 1
// of its gradient: bitwise those of the table.
template <typename Scalar, typename Body>
inline void for_each_entry(const ExampleEmbeddingGrad<Scalar>& job, const int64_t* order,
                           int64_t example, int64_t first, int64_t last, Body body) {
  static thread_local Scratch<Scalar> scratch;
  Scalar* values = scratch.at_least(last - first);
  const int64_t* read = job.indices + example * job.positions;
  const Scalar* grad = job.grad + example * job.positions * job.width;
  const int64_t* mine = order + example * job.positions;
  for (int64_t i = 0; i < job.positions;) {
    const int64_t entry = read[mine[i]];
    std::fill_n(values, last - first, Scalar(0));
    for (; i < job.positions && read[mine[i]] == entry; ++i) {
      const Scalar* from = grad + mine[i] * job.width + first;
      for (int64_t c = 0; c < last - first; ++c) values[c] += from[c];
    }
    if (adds(job, entry)) body(entry, values);
  }
}

// Writes the squared norms of the examples begin … end - 1.
template <typename Scalar>
inline void embedding_norms(const ExampleEmbeddingGrad<Scalar>& job, const int64_t* order,
                            double* squares, int64_t begin, int64_t end) {
  for (int64_t example = begin; example < end; ++example) {
    double sum = 0.0;
    for_each_entry(job, order, example, 0, job.width, [&](int64_t, const Scalar* values) {
      sum += sum_of_squares(values, job.width);
    });
    squares[example] = sum;
  }
}

// Adds the columns first … last - 1 of all examples' gradients to sums [entries, width], scaled. An
// example of scale 0 is passed over.
template <typename Scalar>
inline void recomputed_embedding_sum(const ExampleEmbeddingGrad<Scalar>& job, const int64_t* order,
                                     const double* scales, int64_t* sums, int64_t first,
                                     int64_t last) {
  for (int64_t example = 0; example < job.examples; ++example) {
    if (scales[example] == 0.0) continue;
    for_each_entry(job, order, example, first, last, [&](int64_t entry, const Scalar* values) {
      add_scaled(values, last - first, scales[example], sums + entry * job.width + first);
    });
  }
}

}  // namespace privimage::cpu
