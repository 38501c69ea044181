// How the fused normalisation is cut into blocks: which groups a block has, and what of shared
// memory it needs. Arithmetic of the host; the kernels are handed the result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/launch.h"
#include "shared/group_norm_silu.h"

namespace privimage::cuda {

constexpr int kNormThreads = 256;
constexpr int kVectorBytes = 16;
// Neighbouring channels of a pixel that a block reads: two sectors of memory.
constexpr int kSlabBytes = 64;
// Up to here two blocks share a multiprocessor of sm_90, and one computes while the other waits.
constexpr int64_t kFriendlyBytes = 112 * 1024;

// A block has one row's slab: some whole groups. Offsets into shared memory are in bytes.
struct GroupNormPlan {
  bool vectors;     // 16 bytes at a time, kept in shared memory for the passes after the first
  int slab_groups;  // of every slab of a row but the last
  int64_t slabs;
  int64_t array_bytes;  // of an array that is kept: those of x start at 0, those of grad behind
  int64_t partials_at;  // Wide [arrays, channels of a vector, threads]
  int64_t totals_at;    // Wide [arrays, channels of a slab]
  int64_t groups_at;    // Wide [4, groups of a slab]
  int64_t shared_bytes;
  bool fits;  // the kernels count within a row in 32 bits
};

// Vectors that a thread has of a slab: its threads take `columns` side by side, all of a column's
// positions.
inline int64_t vectors_a_thread(int64_t columns, int64_t positions) {
  int64_t steps = 0;
  for (int64_t first = 0; first < columns; first += kNormThreads) {
    const int64_t lanes = kNormThreads / std::min<int64_t>(columns - first, kNormThreads);
    steps += blocks_for(positions, lanes);
  }
  return steps;
}

template <typename Scalar>
GroupNormPlan plan_slab(const GroupNormShape& shape, int arrays, bool vectors, int64_t groups) {
  constexpr int64_t kVector = kVectorBytes / sizeof(Scalar), kReal = sizeof(Wide<Scalar>);
  const int64_t channels = groups * (shape.channels / shape.groups);
  const int64_t along = vectors && shape.channels_last ? kVector : 1;
  const int64_t pixels = vectors && !shape.channels_last ? shape.pixels / kVector : shape.pixels;
  GroupNormPlan plan{};
  plan.vectors = vectors;
  plan.slab_groups = static_cast<int>(groups);
  plan.slabs = blocks_for(shape.groups, groups);
  plan.array_bytes =
      vectors ? vectors_a_thread(channels / along, pixels) * kNormThreads * kVectorBytes : 0;
  plan.partials_at = arrays * plan.array_bytes;
  plan.totals_at = plan.partials_at + arrays * along * kNormThreads * kReal;
  plan.groups_at = plan.totals_at + arrays * channels * kReal;
  plan.shared_bytes = plan.groups_at + 4 * groups * kReal;
  constexpr int64_t kMost = int64_t{1} << 31;
  plan.fits = shape.pixels < kMost && shape.channels < kMost &&
              shape.channels * shape.pixels < kMost - kNormThreads * kVectorBytes;
  return plan;
}

// `arrays` of activations are read: x forwards, x and grad backwards. `aligned`: all of them, and
// what is written, start at multiples of 16 bytes. `most_shared_bytes`: of a block.
template <typename Scalar>
GroupNormPlan plan_group_norm(const GroupNormShape& shape, int arrays, bool aligned,
                              int64_t most_shared_bytes = kMostSharedBytes) {
  constexpr int64_t kVector = kVectorBytes / sizeof(Scalar);
  const int64_t width = std::max<int64_t>(shape.channels / shape.groups, 1);
  // Channels first, a group lies in one piece; channels last, neighbours share a sector.
  const int64_t wanted =
      shape.channels_last ? kSlabBytes / static_cast<int64_t>(sizeof(Scalar)) / width : 1;
  const int64_t most = std::clamp<int64_t>(wanted, 1, shape.groups);
  const GroupNormPlan plain = plan_slab<Scalar>(shape, arrays, false, most);
  const int64_t line = shape.channels_last ? shape.channels : shape.pixels;
  if (!aligned || sizeof(Scalar) > 4 || line % kVector != 0 || !plain.fits) return plain;
  GroupNormPlan best = plain;
  // Slabs must end between vectors; where narrow ones do not, up to eight groups more may.
  for (int64_t groups = std::min(most + kVector, shape.groups); groups >= 1; --groups) {
    if (shape.channels_last && groups * width % kVector != 0) continue;
    const GroupNormPlan plan = plan_slab<Scalar>(shape, arrays, true, groups);
    if (plan.shared_bytes > most_shared_bytes) continue;
    best = plan;
    if (groups <= most && plan.shared_bytes <= kFriendlyBytes) break;
  }
  return best;
}

inline LaunchShape group_norm_launch(const GroupNormShape& shape, const GroupNormPlan& plan) {
  return {shape.examples * shape.draws, plan.slabs, kNormThreads, plan.shared_bytes};
}

// One thread a channel of an example.
inline LaunchShape affine_launch(const GroupNormShape& shape) {
  return {shape.examples, blocks_for(shape.channels, kNormThreads), kNormThreads, 0};
}

}  // namespace privimage::cuda
