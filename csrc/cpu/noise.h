// Random words and Gaussian integers on the CPU, over a range of tiles: the caller brings the
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/instruction_set.h"
#include "shared/chacha20.h"
#include "shared/gaussian.h"

namespace privimage::cpu {

// Fills `out`, the values of the indices first … first + count - 1 of one step.
struct Draw {
  Stream stream;
  int64_t first;
  int64_t count;
  double std;    // of Gaussian integers
  int64_t* out;  // [count]
};

// The tiles that hold the indices first … first + count - 1.
inline int64_t first_tile(int64_t first) { return first / kTile; }
inline int64_t end_tile(int64_t first, int64_t count) {
  return (first + count + kTile - 1) / kTile;
}

// The 16 blocks of a tile: halves[2 slot] and [2 slot + 1] are the lower and upper halves of words.
using Halves = uint32_t[2 * kSlots][kLanes];

PRIVIMAGE_INLINE void random_tile(const Stream& stream, int64_t tile, Halves& halves) {
  const uint64_t first = static_cast<uint64_t>(kLanes * tile);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t block[2 * kSlots];
    chacha20_block(stream.key, first + lane, stream.step, block);
    for (int i = 0; i < 2 * kSlots; ++i) halves[i][lane] = block[i];
  }
}

template <bool kSmall>
PRIVIMAGE_INLINE void gaussians_of(const Halves& halves, double std, int64_t integers[kTile]) {
  for (int slot = 0; slot < kSlots; slot += 2) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Word radius = {halves[2 * slot][lane], halves[2 * slot + 1][lane]};
      const Word angle = {halves[2 * slot + 2][lane], halves[2 * slot + 3][lane]};
      double first, second;
      gaussian_pair(radius, angle, first, second);
      first *= std;
      second *= std;
      int64_t* out = integers + kLanes * slot + lane;
      out[0] = kSmall ? round_small_to_integer(first) : round_to_integer(first);
      out[kLanes] = kSmall ? round_small_to_integer(second) : round_to_integer(second);
    }
  }
}

// Words of slots 0 and 1 give a pair of Gaussians at the places of the two words, and so on.
PRIVIMAGE_INLINE void gaussian_tile(const Stream& stream, int64_t tile, double std,
                                    int64_t integers[kTile]) {
  Halves halves;
  random_tile(stream, tile, halves);
  if (std <= kLargestSmallStd) {
    gaussians_of<true>(halves, std, integers);
  } else {
    gaussians_of<false>(halves, std, integers);
  }
}

// Copies what [first, first + count) and the tile have in common.
PRIVIMAGE_INLINE void copy_common(const Draw& job, int64_t tile, const int64_t values[kTile]) {
  const int64_t begin = std::max(job.first, tile * kTile);
  const int64_t end = std::min(job.first + job.count, (tile + 1) * kTile);
  for (int64_t i = begin; i < end; ++i) job.out[i - job.first] = values[i - tile * kTile];
}

PRIVIMAGE_INLINE void random_words_loop(const Draw& job, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    Halves halves;
    random_tile(job.stream, tile, halves);
    int64_t words[kTile];
    for (int slot = 0; slot < kSlots; ++slot) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const uint64_t high = halves[2 * slot + 1][lane];
        words[kLanes * slot + lane] = static_cast<int64_t>(high << 32 | halves[2 * slot][lane]);
      }
    }
    copy_common(job, tile, words);
  }
}

PRIVIMAGE_INLINE void gaussian_integers_loop(const Draw& job, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t integers[kTile];
    gaussian_tile(job.stream, tile, job.std, integers);
    copy_common(job, tile, integers);
  }
}

PRIVIMAGE_PER_INSTRUCTION_SET(random_words, random_words_loop, Draw)
PRIVIMAGE_PER_INSTRUCTION_SET(gaussian_integers, gaussian_integers_loop, Draw)

}  // namespace privimage::cpu
