// A small generator of our own: <random> takes longer to compile than all kernels.
#pragma once

#include <cstdint>

namespace privimage::emulator {

struct Random {
  uint64_t state;

  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  // In [-1, 1).
  float fraction() { return static_cast<float>(next()) / 0x1p30f - 1.0f; }
};

}  // namespace privimage::emulator
