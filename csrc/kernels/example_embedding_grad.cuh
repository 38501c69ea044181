// The kernel of the per-example gradient of an embedding table, as a function of a block. One
// thread a column of an example's table: nobody else writes there, so that what is read several
// times adds up in the order of the positions, without atomics.
#pragma once

#include "kernels/block.h"
#include "kernels/launch.h"
#include "shared/example_embedding_grad.h"

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

}  // namespace privimage::cuda
