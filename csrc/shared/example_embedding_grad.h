// The arguments of the per-example gradient of an embedding table, the same for CPU and CUDA.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"

namespace privimage {

template <typename Scalar>
struct ExampleEmbeddingGrad {
  const int64_t* indices;  // [examples, positions]
  const Scalar* grad;      // [examples, positions, width], of what was read there
  Wide<Scalar>* weight;    // [examples, entries, width], an example's in one piece
  int64_t weight_stride;   // from one example to the next
  int64_t examples;
  int64_t positions;
  int64_t entries;
  int64_t width;
  int64_t padding;  // the entry without a gradient, or -1
  bool accumulate;  // add to what weight holds, instead of writing over it
};

// Whether a position adds to the table: an index that does not exist has failed elsewhere already.
template <typename Scalar>
PRIVIMAGE_HOST_DEVICE bool adds(const ExampleEmbeddingGrad<Scalar>& job, int64_t index) {
  return index >= 0 && index < job.entries && index != job.padding;
}

}  // namespace privimage
