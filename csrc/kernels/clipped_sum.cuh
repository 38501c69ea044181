// The kernels of the clipped sum, as functions of a block: one pass for the norms, one for the sum;
// both read every part once.
#pragma once

#include "kernels/block.h"
#include "kernels/launch.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"

namespace privimage::cuda {

constexpr int kClippedSumThreads = 256;

// A block an example, and a thread a parameter.
inline LaunchShape scales_launch(int64_t examples) {
  return {examples, 1, kClippedSumThreads, kClippedSumThreads * int64_t{sizeof(double)}};
}
inline LaunchShape sums_launch(int64_t parameters) {
  return {blocks_for(parameters, kClippedSumThreads), 1, kClippedSumThreads, 0};
}

// One block an example. Thread t adds the squares t, t + 256, …; the tree below adds the threads in
// a fixed order, so that the norm is the same in every run.
template <typename Scalar>
PRIVIMAGE_DEVICE void write_scales(const Block& block, const ClippedSum<Scalar>& job) {
  const Shared<double> partial = block.shared<double>(0, kClippedSumThreads);
  const int thread = block.thread();
  const Scalar* row = job.parts + block.x() * job.row_stride;
  double squares = 0.0;
  for (int64_t i = thread; i < job.parameters; i += kClippedSumThreads) {
    const double value = row[i];
    squares += value * value;
  }
  partial.store(thread, squares);
  block.barrier();
  for (int half = kClippedSumThreads / 2; half > 0; half /= 2) {
    if (thread < half) partial.store(thread, partial.load(thread) + partial.load(thread + half));
    block.barrier();
  }
  if (thread == 0) job.scales[block.x()] = grid_scale(partial.load(0), job.rule);
}

// One thread a parameter: neighbouring threads read neighbouring values of each row. Integers, so
// no order to keep; one writer an element, so no atomics.
template <typename Scalar>
PRIVIMAGE_DEVICE void write_sums(const Block& block, const ClippedSum<Scalar>& job) {
  const int64_t i = block.x() * kClippedSumThreads + block.thread();
  if (i >= job.parameters) return;
  int64_t sum = 0;
  for (int64_t example = 0; example < job.examples; ++example) {
    const double scale = job.scales[example];
    if (scale != 0.0) sum += grid_coordinate(job.parts[example * job.row_stride + i], scale);
  }
  job.sum[i] = sum;
}

}  // namespace privimage::cuda
