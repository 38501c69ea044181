// The rows in which a GPU keeps the gradients of examples: as wide as their sums, or rounded to
// bfloat16, which halves what is written now and read for the clipped sum.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"

namespace privimage {

// [examples, values], an example's in one piece. One of the pointers is null, or both where no rows
// are asked for.
template <typename Real>
struct GradRows {
  Real* wide;
  Bfloat16* half;
  int64_t stride;   // from one example to the next
  bool accumulate;  // add to what is there, instead of writing over it

  PRIVIMAGE_HOST_DEVICE bool asked() const { return wide != nullptr || half != nullptr; }

  // Stores a value, and returns what is stored: norms and sums are of that.
  template <typename Block>
  PRIVIMAGE_HOST_DEVICE Real keep(const Block& block, int64_t example, int64_t place,
                                  Real value) const {
    if (half != nullptr) return keep_half(block, example, place, value);
    return wide != nullptr ? keep_wide(block, example, place, value) : value;
  }
  template <typename Block>
  PRIVIMAGE_HOST_DEVICE Real keep_wide(const Block& block, int64_t example, int64_t place,
                                       Real value) const {
    Real* to = wide + example * stride + place;
    if (accumulate) value += block.load(to);
    block.store(to, value);
    return value;
  }
  template <typename Block>
  PRIVIMAGE_HOST_DEVICE Real keep_half(const Block& block, int64_t example, int64_t place,
                                       Real value) const {
    Bfloat16* to = half + example * stride + place;
    if (accumulate) value += to_float(block.load(to));
    const Bfloat16 rounded = to_bfloat16(static_cast<float>(value));
    block.store(to, rounded);
    return to_float(rounded);
  }
};

}  // namespace privimage
