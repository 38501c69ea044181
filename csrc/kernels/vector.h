// Neighbouring values that one instruction loads or stores.
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/bfloat16.h"
#include "shared/host_device.h"

namespace privimage::cuda {

// Lies in memory at a multiple of its size.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T at[kCount];
};

// The values of a vector, wide and back. bfloat16s come in pairs: two instructions widen one, and
// one rounds it.
template <typename Scalar, int kCount>
PRIVIMAGE_HOST_DEVICE Vector<Wide<Scalar>, kCount> widen_all(const Vector<Scalar, kCount>& values) {
  Vector<Wide<Scalar>, kCount> wide;
  if constexpr (sizeof(Scalar) == 2 && kCount % 2 == 0) {
    uint32_t pairs[kCount / 2];
    memcpy(pairs, &values, sizeof pairs);
    PRIVIMAGE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const uint32_t bits = i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u;
      memcpy(&wide.at[i], &bits, sizeof bits);
    }
  } else {
    PRIVIMAGE_UNROLL
    for (int i = 0; i < kCount; ++i) wide.at[i] = widen(values.at[i]);
  }
  return wide;
}
template <typename Scalar, int kCount>
PRIVIMAGE_HOST_DEVICE Vector<Scalar, kCount> narrow_all(const Vector<Wide<Scalar>, kCount>& wide) {
  Vector<Scalar, kCount> values;
  if constexpr (sizeof(Scalar) == 2 && kCount % 2 == 0) {
    uint32_t pairs[kCount / 2];
    PRIVIMAGE_UNROLL
    for (int i = 0; i < kCount; i += 2) {
      pairs[i / 2] = to_bfloat16_pair(wide.at[i], wide.at[i + 1]);
    }
    memcpy(&values, pairs, sizeof values);
  } else {
    PRIVIMAGE_UNROLL
    for (int i = 0; i < kCount; ++i) values.at[i] = narrow<Scalar>(wide.at[i]);
  }
  return values;
}

}  // namespace privimage::cuda
