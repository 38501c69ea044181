// The kernels of the last pass of a private step, as functions of a block: one thread a ChaCha20
// block, which is the noise of eight parameters.
//
// The number of the step and those of the optimiser are read from memory when the kernel runs, and
// the second kernel counts the step up: a CUDA graph that is replayed holds the same arguments each
// time and still never draws the same noise twice.
#pragma once

#include "kernels/block.h"
#include "kernels/launch.h"
#include "kernels/private_update.h"

namespace privimage::cuda {

constexpr int kUpdateThreads = 256;

inline LaunchShape update_launch(const PrivateUpdate& update) {
  const int64_t end = update.first_index % kTile + update.count;  // from the first tile's start
  const int64_t tiles = update.count > 0 ? blocks_for(end, kTile) : 0;
  return {blocks_for(product(tiles, kLanes), kUpdateThreads), 1, kUpdateThreads, 0};
}

template <bool kAdam, bool kAverage>
PRIVIMAGE_DEVICE void update_parameters(const Block& block, const UpdateOnGpu& job) {
  const int64_t first = job.update.first_index / kTile * kLanes;
  PrivateUpdate update = job.update;
  update.rule = read_rule(update.rule.noise_std, update.rule.scale, job.numbers);
  update_block<kAdam, kAverage>(update, job.key, static_cast<uint64_t>(*job.step),
                                first + block.x() * kUpdateThreads + block.thread());
}

PRIVIMAGE_DEVICE void count_step(const Block& block, const UpdateOnGpu& job) {
  if (block.thread() == 0) ++*job.step;
}

}  // namespace privimage::cuda
