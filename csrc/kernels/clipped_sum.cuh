// What the clipped sum adds to the kernels of the scaled one, as a function of a block: scales from
// norms.
#pragma once

#include "kernels/block.h"
#include "kernels/launch.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"

namespace privimage::cuda {

constexpr int kScaleThreads = 128;

// A thread an example.
inline LaunchShape scales_launch(int64_t examples) {
  return {blocks_for(examples, kScaleThreads), 1, kScaleThreads, 0};
}

// job.scales holds the squared norms.
template <typename Scalar>
PRIVIMAGE_DEVICE void write_scales(const Block& block, const ClippedSum<Scalar>& job) {
  const int64_t i = block.x() * kScaleThreads + block.thread();
  if (i < job.examples) job.scales[i] = grid_scale(job.scales[i], job.rule);
}

}  // namespace privimage::cuda
