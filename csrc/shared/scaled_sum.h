// Gradients that are kept: the arguments of their norms and of their scaled sum, the same for CPU
// and CUDA.
#pragma once

#include <cstdint>

namespace privimage {

// parts [examples, parameters], rows `stride` values apart.
template <typename Scalar>
struct KeptParts {
  const Scalar* parts;
  int64_t stride;
  int64_t examples;
  int64_t parameters;
};

// Columns begin … end - 1 of the rows.
struct Columns {
  int64_t begin, end;
};

}  // namespace privimage
