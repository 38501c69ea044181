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

  PRIVIMAGE_HOST_DEVICE Real* wide_at(int64_t example, int64_t place) const {
    return wide + example * stride + place;
  }
  PRIVIMAGE_HOST_DEVICE Bfloat16* half_at(int64_t example, int64_t place) const {
    return half + example * stride + place;
  }

  // What a place will hold of a value: what is there is added, the result rounded. Norms and sums
  // are of that.
  template <typename Block>
  PRIVIMAGE_HOST_DEVICE Real settled(const Block& block, int64_t example, int64_t place,
                                     Real value) const {
    if (half != nullptr) {
      if (accumulate) value += to_float(block.load(half_at(example, place)));
      return to_float(to_bfloat16(static_cast<float>(value)));
    }
    if (wide != nullptr && accumulate) value += block.load(wide_at(example, place));
    return value;
  }
  // Stores a value, and returns what is stored.
  template <typename Block>
  PRIVIMAGE_HOST_DEVICE Real keep(const Block& block, int64_t example, int64_t place,
                                  Real value) const {
    value = settled(block, example, place, value);
    if (half != nullptr) {
      block.store(half_at(example, place), to_bfloat16(static_cast<float>(value)));
    } else if (wide != nullptr) {
      block.store(wide_at(example, place), value);
    }
    return value;
  }
};

}  // namespace privimage
