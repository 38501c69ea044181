// A bfloat16 as its bits: the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/grid.h"

namespace privimage {

struct alignas(2) Bfloat16 {
  uint16_t bits;
};

PRIVIMAGE_HOST_DEVICE float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// To the nearest, ties to even; a NaN stays one.
PRIVIMAGE_HOST_DEVICE Bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace privimage
