// The clipped sum on the CPU, over a range of examples or parameters: the caller brings the
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"

namespace privimage::cpu {

// Sums of squares run in this many lanes, added pairwise at the end: a fixed order that fills the
// widest vectors, so the result depends on neither machine nor threads.
constexpr int64_t kLanes = 16;

// Parameters that are added up at a time: their sums stay in the first-level cache while the rows
// of all examples pass by.
constexpr int64_t kBlock = 1024;

template <typename Scalar>
PRIVIMAGE_INLINE double squared_norm(const Scalar* row, int64_t parameters) {
  double lanes[kLanes] = {};
  const int64_t whole = parameters - parameters % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = row[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (int64_t i = whole; i < parameters; ++i) {
    const double value = row[i];
    lanes[i - whole] += value * value;
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <typename Scalar>
PRIVIMAGE_INLINE void scales(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  for (int64_t example = begin; example < end; ++example) {
    const Scalar* row = job.parts + example * job.row_stride;
    job.scales[example] = grid_scale(squared_norm(row, job.parameters), job.rule);
  }
}

template <typename Scalar>
PRIVIMAGE_INLINE void sums(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = std::min(kBlock, end - start);
    int64_t block[kBlock] = {};
    for (int64_t example = 0; example < job.examples; ++example) {
      const double scale = job.scales[example];
      if (scale == 0.0) continue;
      const Scalar* row = job.parts + example * job.row_stride + start;
      for (int64_t i = 0; i < count; ++i) block[i] += grid_coordinate(row[i], scale);
    }
    std::copy_n(block, count, job.sum + start);
  }
}

// Writes job.scales for the examples begin … end - 1.
PRIVIMAGE_CLONES void clipped_sum_scales(const ClippedSum<float>& job, int64_t begin, int64_t end) {
  scales(job, begin, end);
}
PRIVIMAGE_CLONES void clipped_sum_scales(const ClippedSum<double>& job, int64_t begin,
                                         int64_t end) {
  scales(job, begin, end);
}

// Writes job.sum for the parameters begin … end - 1, from job.scales.
PRIVIMAGE_CLONES void clipped_sum_sums(const ClippedSum<float>& job, int64_t begin, int64_t end) {
  sums(job, begin, end);
}
PRIVIMAGE_CLONES void clipped_sum_sums(const ClippedSum<double>& job, int64_t begin, int64_t end) {
  sums(job, begin, end);
}

}  // namespace privimage::cpu
