// The arguments of the clipped sum, the same for CPU and CUDA.
#pragma once

#include <cstdint>

#include "shared/grid.h"

namespace privimage {

template <typename Scalar>
struct ClippedSum {
  const Scalar* parts;  // [examples, parameters], one example's gradient a row
  double* scales;       // [examples], written first: see grid_scale
  int64_t* sum;         // [parameters], in grid steps
  int64_t examples;
  int64_t parameters;
  int64_t row_stride;  // from one row to the next, in values
  ClipRule rule;
};

}  // namespace privimage
