// The integer grid on which clipped gradients are added: exact sums, whatever their order.
//
// A grid step is C / 2^30 for clipping norm C. An example is scaled so that its norm is at most C
// (or a share of it), and each coordinate is rounded towards zero, which can only make the norm
// smaller.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "shared/host_device.h"

namespace privimage {

// The same number stands in privimage/ops/reference.py; tests hold them together.
constexpr int kGridBits = 30;

// How far below C the scaled norm is kept. It pays for every rounding, so that the vector that is
// added has a norm of at most C, for n parameters up to 2^32 and C >= 1e-30. With unit roundoff
// u = 2^-53, true norm N and computed squared norm S:
// - each square is off by u of itself (not at all for float32 values), and each of n additions, in
//   any order, by u of the sum: S >= N² (1 - u)^(n + 1), so the root of S, rounded, is at least
//   N (1 - (n + 3) u / 2), which is N (1 - 2^-22) or more. Squares that underflow change S by at
//   most 2^-1075 each: 2^-1043 in all, far below u of C².
// - `allowed` and 2^30 / C are rounded once or twice, quotient and scale once each, together
//   less than 8 u. Then the scale is cut to 24 bits, which can only make it smaller.
// - each coordinate's product is rounded once, a float32's to 24 bits: off by 2^-24 of itself, or,
//   where it underflows, by less than what is then rounded away.
// So the coordinates, in steps, have a norm of at most 2^30 (1 - 2^-20) (1 + 2^-21.9) (1 + 2^-24),
// which is below 2^30, and rounding towards zero can only make it smaller.
// A share s of C, itself rounded once, gives s times that. Shares whose exact squares add up to 1
// leave room for such a rounding each, so parts scaled with them one by one are at most 2^30 long
// together. Where an example is normalised, the root is divided by a larger number than here, and
// squares that underflow hide at most 2^-521 of N, which a stability of 1e-30 or more makes up for.
constexpr double kNormMargin = 0x1p-20;

// The smallest and the largest scale but 0: normal float32s. Larger ones, of a C below 3.2e-30, are
// made smaller.
constexpr double kLeastScale = 0x1p-126;
constexpr double kMostScale = 0x1.fffffep127;

// Towards zero, from a normal float32's range.
PRIVIMAGE_HOST_DEVICE double cut_to_float(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits &= ~((uint64_t{1} << 29) - 1);
  memcpy(&value, &bits, sizeof bits);
  return value;
}

// How long a scaled gradient may be, and which are scaled.
struct ClipRule {
  double max_grad_norm;    // C
  double share = 1.0;      // of C that the norm may reach, in (0, 1]
  bool normalise = false;  // divides by norm + stability (arXiv 2206.07136), whatever the norm
  double stability = 0.0;  // in [1e-30, 1e30] where it normalises
};

// What a coordinate is multiplied with to be in grid steps, from the example's squared norm: a
// float32, so that coordinates can be multiplied in float32.
//
// 0 stands for an example that is not finite, whose squares overflow, or whose norm is beyond that
// of any float32 values: it must be passed over, not multiplied, since 0 * inf is not a number.
// Squares that underflow need no clipping. A step computes scales in PyTorch, by `grid_scales` in
// privimage/ops/reference.py, bit for bit the same; tests of the kernels have this one.
PRIVIMAGE_HOST_DEVICE double grid_scale(double squared_norm, const ClipRule& rule) {
  const double steps = static_cast<double>(int64_t{1} << kGridBits);
  if (!(squared_norm <= 1.7976931348623157e308)) return 0.0;
  const double norm = sqrt(squared_norm);
  const double allowed = rule.max_grad_norm * rule.share * (1.0 - kNormMargin);
  double factor = 1.0;
  if (rule.normalise) {
    factor = allowed / (norm + rule.stability);
  } else if (norm > allowed) {
    factor = allowed / norm;
  }
  const double scale = steps / rule.max_grad_norm * factor;
  if (!(scale >= kLeastScale)) return 0.0;
  return cut_to_float(scale < kMostScale ? scale : kMostScale);
}

// A coordinate in grid steps, towards zero, from a scale that `grid_scale` gave. It is at most
// 2^30, so 32 bits hold it, and the conversion is one vector instruction on every x86-64 and ARM.
// Float32 values are multiplied as such: twice as many in a vector, and a GPU converts to and from
// 64 bits slowly.
PRIVIMAGE_HOST_DEVICE int32_t grid_coordinate(float value, double scale) {
  return static_cast<int32_t>(value * static_cast<float>(scale));
}
PRIVIMAGE_HOST_DEVICE int32_t grid_coordinate(double value, double scale) {
  return static_cast<int32_t>(value * scale);
}

}  // namespace privimage
