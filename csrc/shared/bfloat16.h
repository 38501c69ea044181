// A bfloat16 as its bits: the upper half of a float; and the wider type that its sums have.
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/host_device.h"

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
#ifdef __CUDA_ARCH__
  // One of a pair: of the instructions that round, the only one at full speed.
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
  return {static_cast<uint16_t>(pair)};
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
}

// Two of them side by side, the first in the lower half, as neighbours lie in memory.
PRIVIMAGE_HOST_DEVICE uint32_t to_bfloat16_pair(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return static_cast<uint32_t>(to_bfloat16(second).bits) << 16 | to_bfloat16(first).bits;
#endif
}

// The type in which values of another are added up.
template <typename Scalar>
struct WideType {
  using type = Scalar;
};
template <>
struct WideType<Bfloat16> {
  using type = float;
};
template <typename Scalar>
using Wide = typename WideType<Scalar>::type;

PRIVIMAGE_HOST_DEVICE float widen(Bfloat16 value) { return to_float(value); }
PRIVIMAGE_HOST_DEVICE float widen(float value) { return value; }
PRIVIMAGE_HOST_DEVICE double widen(double value) { return value; }

template <typename Scalar>
PRIVIMAGE_HOST_DEVICE Scalar narrow(Wide<Scalar> value) {
  return value;
}
template <>
PRIVIMAGE_HOST_DEVICE Bfloat16 narrow<Bfloat16>(float value) {
  return to_bfloat16(value);
}

}  // namespace privimage
