// The last pass of a private step on the CPU, over a range of noise tiles: the caller brings the
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/instruction_set.h"
#include "cpu/noise.h"
#include "shared/private_update.h"

namespace privimage::cpu {

struct UpdateOnCpu {
  PrivateUpdate update;
  Stream stream;
};

// Asks for the memory of a tile that comes later: it arrives while noise is drawn. Addresses beyond
// the arrays do no harm.
template <bool kAdam, bool kAverage>
PRIVIMAGE_INLINE void expect(const PrivateUpdate& update, int64_t start) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = start; i < start + kTile; i += kLine) {
    __builtin_prefetch(update.clipped_sum + i);
    __builtin_prefetch(update.clipped_sum + i + kLine / 2);
    __builtin_prefetch(update.parameters + i, 1);
    __builtin_prefetch(update.momentum + i, 1);
    if (kAdam) __builtin_prefetch(update.second_moment + i, 1);
    if (kAverage) __builtin_prefetch(update.average + i, 1);
  }
}

template <bool kAdam, bool kAverage>
PRIVIMAGE_INLINE void update_tiles(const UpdateOnCpu& job, int64_t begin, int64_t end) {
  // Copies of the pointers, which the compiler then knows not to change in the loop.
  const PrivateUpdate update = job.update;
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t noise[kTile];
    const int64_t start = tile * kTile - update.first_index;  // of the tile, in the arrays
    expect<kAdam, kAverage>(update, start + kTile);
    gaussian_tile(job.stream, tile, update.rule.noise_std, noise);
    const int64_t first = std::max(start, int64_t{0});
    const int64_t last = std::min(start + kTile, update.count);
#pragma GCC ivdep
    for (int64_t i = first; i < last; ++i) {
      update_parameter<kAdam, kAverage>(update, i, noise[i - start]);
    }
  }
}

PRIVIMAGE_INLINE void private_update_loop(const UpdateOnCpu& job, int64_t begin, int64_t end) {
  const bool adam = job.update.second_moment != nullptr;
  const bool average = job.update.average != nullptr;
  if (adam && average) return update_tiles<true, true>(job, begin, end);
  if (adam) return update_tiles<true, false>(job, begin, end);
  if (average) return update_tiles<false, true>(job, begin, end);
  update_tiles<false, false>(job, begin, end);
}

PRIVIMAGE_PER_INSTRUCTION_SET(private_update, private_update_loop, UpdateOnCpu)

}  // namespace privimage::cpu
