// The kernels of the per-example gradient of an embedding table, as functions of a block. As a
// table, one thread a column: nobody else writes there, so that what is read several times adds up
// in the order of the positions, without atomics. By entry, for norms and sums that need no table,
// one block for each entry that an example read: the block of the position where it was read first.
#pragma once

#include "kernels/add_up.cuh"
#include "kernels/block.h"
#include "kernels/example_embedding_grad.h"
#include "kernels/launch.h"
#include "shared/grid.h"

namespace privimage::cuda {

constexpr int kEmbeddingThreads = 64;

inline LaunchShape embedding_launch(int64_t examples, int64_t width) {
  return {examples, blocks_for(width, kEmbeddingThreads), kEmbeddingThreads, 0};
}

template <typename Scalar>
PRIVIMAGE_DEVICE void embedding_grad(const Block& block, const ExampleEmbeddingGrad<Scalar>& job) {
  const int64_t column = block.y() * kEmbeddingThreads + block.thread();
  if (column >= job.width) return;
  Wide<Scalar>* table = job.weight + block.x() * job.weight_stride + column;
  if (!job.accumulate) {
    for (int64_t entry = 0; entry < job.entries; ++entry) table[entry * job.width] = 0;
  }
  const int64_t first = block.x() * job.positions;
  for (int64_t i = first; i < first + job.positions; ++i) {
    const int64_t index = job.indices[i];
    if (adds(job, index)) table[index * job.width] += widen(job.grad[i * job.width + column]);
  }
}

// A block a position, an example's behind each other. Its threads go over all positions together,
// which is quadratic in their number, and nothing beside the columns for the hundreds that there
// are.
template <typename Scalar>
LaunchShape by_entry_launch(const ExampleEmbeddingGrad<Scalar>& job) {
  return {product(job.examples, job.positions), 1, kEmbeddingThreads,
          kEmbeddingThreads * int64_t{sizeof(double)}};
}

// Values are added up as in the table: the same bits.
template <typename Scalar>
PRIVIMAGE_DEVICE void embedding_by_entry(const Block& block, const EmbeddingByEntry<Scalar>& job) {
  const ExampleEmbeddingGrad<Scalar>& read = job.read;
  const int64_t example = block.x() / read.positions, position = block.x() % read.positions;
  const int64_t* indices = read.indices + example * read.positions;
  const Scalar* grad = read.grad + example * read.positions * read.width;
  const int64_t entry = indices[position];
  const double scale = job.sum != nullptr ? job.scales[example] : 0.0;
  bool is_first = adds(read, entry);
  for (int64_t i = 0; i < position && is_first; ++i) is_first = indices[i] != entry;
  double squares = 0.0;
  const int64_t columns = is_first ? read.width : 0;
  for (int64_t column = block.thread(); column < columns; column += kEmbeddingThreads) {
    Wide<Scalar> value = 0;
    for (int64_t i = position; i < read.positions; ++i) {
      if (indices[i] == entry) value += widen(grad[i * read.width + column]);
    }
    squares += double(value) * double(value);
    if (scale != 0.0) {
      block.add(job.sum + entry * read.width + column, int64_t{grid_coordinate(value, scale)});
    }
  }
  if (job.squares == nullptr) return;
  const double total = add_threads(block, squares, kEmbeddingThreads, 0);
  if (block.thread() == 0) job.squares[block.x()] = total;
}

}  // namespace privimage::cuda
