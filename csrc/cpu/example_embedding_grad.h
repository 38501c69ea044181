// The per-example gradient of an embedding table on the CPU, over a range of examples: the caller
// brings the threads.
#pragma once

#include <algorithm>
#include <cstdint>

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

}  // namespace privimage::cpu
