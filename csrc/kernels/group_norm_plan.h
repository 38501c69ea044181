// How the fused normalisation is cut into blocks: which groups a block has, how its threads share
// them, and what of shared memory it needs. Arithmetic of the host; the kernels are handed the
// result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/launch.h"
#include "shared/group_norm_silu.h"

namespace privimage::cuda {

// Threads of a block, by how much it has to do: each has its share of what it costs to begin and to
// add up, which a few vectors a thread must be worth.
constexpr int kLeastNormThreads = 64, kNormThreads = 256, kMostNormThreads = 512;
constexpr int kWorthwhileSteps = 4;
constexpr int kVectorBytes = 16;
// Neighbouring channels of a pixel that a block reads: two sectors of memory, or more where the
// block is small all the same; its waiting and adding up is then a smaller share of its time.
constexpr int64_t kSlabBytes = 64, kMostSlabBytes = 512;
constexpr int64_t kSmallBytes = 40 * 1024;
// Up to here three blocks share a multiprocessor of sm_90, and two compute or write while one
// waits: 228 KB, of which each block takes one more than it asks for.
constexpr int64_t kFriendlyBytes = 75 * 1024;
// Above this a block has a multiprocessor for itself.
constexpr int64_t kSharedByTwo = 113 * 1024;
// What a block knows of each channel, see group_norm_slab.cuh.
constexpr int kTables = 6;

// A block has one row's slab: some whole groups. Offsets into shared memory are in bytes.
struct GroupNormPlan {
  bool vectors;     // 16 bytes at a time, kept in shared memory for the passes after the first
  int slab_groups;  // of every slab of a row but the last
  int slabs;
  int threads;
  int across;           // columns that the threads take side by side, a power of two
  int steps;            // vectors, or values, that a thread has of a column
  int64_t array_bytes;  // of an array that is kept: those of x start at 0, those of grad behind
  int64_t partials_at;  // Wide [arrays, parts, channels of a slab]
  int64_t totals_at;    // Wide [arrays, channels of a slab]
  int64_t tables_at;    // Wide [kTables, channels of a slab]
  int64_t shared_bytes;
  bool fits;  // the kernels count within a row in 32 bits
};

// Sums of a column that are left when each warp has added up its own.
PRIVIMAGE_HOST_DEVICE int parts_of_a_column(int threads, int across, bool channels_last) {
  // Channels last, a warp has `across` columns, at most 32; else one, as far as its threads reach.
  if (channels_last) return threads / (across > 32 ? across : 32);
  return across < threads / 32 ? threads / 32 / across : 1;
}

// Cuts `columns` of `positions` vectors each.
inline void share_columns(GroupNormPlan& plan, int arrays, int64_t columns, int64_t positions) {
  plan.across = 1;
  while (plan.across < columns && plan.across < kNormThreads) plan.across *= 2;
  const auto steps = [&](int threads) { return blocks_for(positions, threads / plan.across); };
  plan.threads = kNormThreads;
  if (plan.vectors) {
    const int64_t bytes = arrays * columns * positions * kVectorBytes;
    if (bytes > kSharedByTwo) plan.threads = kMostNormThreads;
    while (plan.threads > kLeastNormThreads && plan.threads / 2 >= plan.across &&
           steps(plan.threads) < kWorthwhileSteps) {
      plan.threads /= 2;
    }
    plan.array_bytes = blocks_for(columns, plan.across) * steps(plan.threads) * plan.threads *
                       int64_t{kVectorBytes};
  }
  plan.steps = static_cast<int>(steps(plan.threads));
}

template <typename Scalar>
GroupNormPlan plan_slab(const GroupNormShape& shape, int arrays, bool vectors, int64_t groups) {
  constexpr int64_t kVector = kVectorBytes / sizeof(Scalar), kReal = sizeof(Wide<Scalar>);
  const int64_t channels = groups * (shape.channels / shape.groups);
  const int64_t along = vectors && shape.channels_last ? kVector : 1;
  GroupNormPlan plan{};
  plan.vectors = vectors;
  plan.slab_groups = static_cast<int>(groups);
  plan.slabs = static_cast<int>(blocks_for(shape.groups, groups));
  share_columns(plan, arrays, channels / along,
                vectors && !shape.channels_last ? shape.pixels / kVector : shape.pixels);
  plan.partials_at = arrays * plan.array_bytes;
  const int64_t parts = parts_of_a_column(plan.threads, plan.across, shape.channels_last);
  plan.totals_at = plan.partials_at + arrays * parts * channels * kReal;
  plan.tables_at = plan.totals_at + arrays * channels * kReal;
  plan.shared_bytes = plan.tables_at + kTables * channels * kReal;
  constexpr int64_t kMost = (int64_t{1} << 31) - kMostNormThreads * int64_t{kVectorBytes};
  plan.fits = shape.pixels < kMost && shape.channels < kMost &&
              shape.channels * (shape.pixels + kMostNormThreads) < kMost;
  return plan;
}

// `arrays` of activations are read: x forwards, x and grad backwards. `aligned`: all of them, and
// what is written, start at multiples of 16 bytes. `most_shared_bytes`: of a block.
template <typename Scalar>
GroupNormPlan plan_group_norm(const GroupNormShape& shape, int arrays, bool aligned,
                              int64_t most_shared_bytes = kMostSharedBytes) {
  constexpr int64_t kVector = kVectorBytes / sizeof(Scalar), kScalar = sizeof(Scalar);
  const int64_t width = std::max<int64_t>(shape.channels / shape.groups, 1);
  // Channels first, a group lies in one piece; channels last, neighbours share a sector.
  const auto groups_of = [&](int64_t bytes) {
    const int64_t wanted = shape.channels_last ? bytes / kScalar / width : 1;
    return std::clamp<int64_t>(wanted, 1, shape.groups);
  };
  const GroupNormPlan plain = plan_slab<Scalar>(shape, arrays, false, groups_of(kSlabBytes));
  const int64_t line = shape.channels_last ? shape.channels : shape.pixels;
  if (!aligned || sizeof(Scalar) > 4 || line % kVector != 0 || !plain.fits) return plain;
  GroupNormPlan narrowest = plain, widest = plain;
  // Slabs must end between vectors; where narrow ones do not, up to eight groups more may.
  const int64_t most = std::min(groups_of(kMostSlabBytes) + kVector, shape.groups);
  for (int64_t groups = shape.channels_last ? most : 1; groups >= 1; --groups) {
    const int64_t channels = groups * width;
    if (shape.channels_last && channels % kVector != 0) continue;
    const GroupNormPlan plan = plan_slab<Scalar>(shape, arrays, true, groups);
    if (plan.shared_bytes > most_shared_bytes) continue;
    narrowest = plan;
    const bool wide = shape.channels_last && channels * kScalar > kSlabBytes;
    if (plan.shared_bytes > (wide ? kSmallBytes : kFriendlyBytes)) continue;
    if (!widest.vectors) widest = plan;
    // Every thread has a column, and every slab is as wide as the others.
    const int64_t columns = shape.channels_last ? channels / kVector : channels;
    if (plan.across == columns && shape.groups % groups == 0) return plan;
  }
  return widest.vectors ? widest : narrowest;
}

// A row's slabs are neighbours: blocks that run at the same time read the sectors beside each
// other's.
inline LaunchShape group_norm_launch(const GroupNormShape& shape, const GroupNormPlan& plan) {
  const int64_t rows = product(shape.examples, shape.draws);
  return {product(rows, plan.slabs), 1, plan.threads, plan.shared_bytes};
}

// One thread a channel of an example.
inline LaunchShape affine_launch(const GroupNormShape& shape) {
  return {shape.examples, blocks_for(shape.channels, kNormThreads), kNormThreads, 0};
}

}  // namespace privimage::cuda
