// The integer grid on which clipped gradients are added: exact sums, whatever their order.
//
// A grid step is C / 2^30 for clipping norm C. An example is scaled so that its norm is at most C,
// and each coordinate is rounded towards zero, which can only make the norm smaller.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PRIVIMAGE_HOST_DEVICE __host__ __device__ inline
#else
#define PRIVIMAGE_HOST_DEVICE inline
#endif

namespace privimage {

// The same number stands in privimage/ops/reference.py; tests hold them together.
constexpr int kGridBits = 30;

// How far below C the scaled norm is kept. It pays for every rounding in double precision: n
// squares added in any order are off by at most n 2^-53 of their sum (the root halves that), the
// scale and each product by 2^-52 more. 2^-20 covers all of it up to n = 2^32 parameters.
constexpr double kNormMargin = 0x1p-20;

// What a coordinate is multiplied with to be in grid steps, from the example's squared norm.
//
// 0 stands for an example that is not finite, or whose squares overflow: it must be passed over,
// not multiplied, since 0 * inf is not a number. Squares that underflow need no clipping.
PRIVIMAGE_HOST_DEVICE double grid_scale(double squared_norm, double max_grad_norm) {
  const double steps = static_cast<double>(int64_t{1} << kGridBits);
  if (!(squared_norm <= 1.7976931348623157e308)) return 0.0;
  const double norm = sqrt(squared_norm);
  const double allowed = max_grad_norm * (1.0 - kNormMargin);
  return steps / max_grad_norm * (norm > allowed ? allowed / norm : 1.0);
}

// A coordinate in grid steps, towards zero. It is at most 2^30, so 32 bits hold it, and the
// conversion is one vector instruction on every x86-64 and ARM.
PRIVIMAGE_HOST_DEVICE int32_t grid_coordinate(double value, double scale) {
  return static_cast<int32_t>(value * scale);
}

}  // namespace privimage
