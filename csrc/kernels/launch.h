// How many blocks of how many threads a kernel is started with, as plain numbers: the launchers,
// the emulator and the tests of the host's arithmetic share them.
#pragma once

#include <cstdint>

namespace privimage::cuda {

// What a block may have, at most: all of sm_80. Elsewhere there is more (sm_90 has 227 KB) or less
// (sm_86, sm_89 and sm_120 have 99), so launchers ask, and cut their work accordingly.
constexpr int64_t kMostSharedBytes = 163 * 1024;

// In place of a CUDA error code: no grid or no shared memory of this GPU is large enough.
constexpr int kTooLarge = -1;
// cudaErrorNoKernelImageForDevice, for those who don't see CUDA's headers.
constexpr int kNoImage = 209;

struct LaunchShape {
  int64_t blocks_x;
  int64_t blocks_y;
  int threads;
  int64_t shared_bytes;

  // A grid of no blocks is an error to CUDA, and nothing to do for us.
  bool empty() const { return blocks_x == 0 || blocks_y == 0; }
  bool possible(int64_t most_shared_bytes = kMostSharedBytes) const {
    return blocks_x < int64_t{1} << 31 && blocks_y < 65536 && shared_bytes <= most_shared_bytes;
  }
};

// ⌈values / each⌉ for values >= 0.
constexpr int64_t blocks_for(int64_t values, int64_t each) {
  return values / each + (values % each != 0);
}

// a b for a, b >= 0; where that is beyond 64 bits, more than any grid has.
constexpr int64_t product(int64_t a, int64_t b) {
  return a != 0 && b > INT64_MAX / a ? INT64_MAX : a * b;
}

}  // namespace privimage::cuda
