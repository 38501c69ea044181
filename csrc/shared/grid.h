// The integer grid on which clipped gradients are added: exact sums, whatever their order.
//
// A grid step is C / 2^30 for clipping norm C. An example is scaled so that its norm is at most C,
// and each coordinate is rounded towards zero, which can only make the norm smaller.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/host_device.h"

namespace privimage {

// The same number stands in privimage/ops/reference.py; tests hold them together.
constexpr int kGridBits = 30;

// How far below C the scaled norm is kept. It pays for every rounding in double precision, so that
// the vector that is added has a norm of at most C, for n parameters up to 2^32 and C >= 1e-30.
// With unit roundoff u = 2^-53, true norm N and computed squared norm S:
// - each square is off by u of itself (not at all for float32 values), and each of n additions, in
//   any order, by u of the sum: S >= N² (1 - u)^(n + 1), so the root of S, rounded, is at least
//   N (1 - (n + 3) u / 2), which is N (1 - 2^-22) or more. Squares that underflow change S by at
//   most 2^-1075 each: 2^-1043 in all, far below u of C².
// - `allowed` and 2^30 / C are rounded once or twice, the quotient, the scale and each coordinate's
//   product once each: together less than 8 u.
// So the coordinates, in steps, have a norm of at most 2^30 (1 - 2^-20) (1 + 2^-21.9) < 2^30, and
// rounding towards zero can only make it smaller.
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
