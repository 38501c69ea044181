// The clipped sum on the CPU, over a range of examples or parameters: the caller brings the
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"
#include "shared/scaled_sum.h"

namespace privimage::cpu {

// Sums of squares run in this many lanes, added pairwise at the end: a fixed order that fills the
// widest vectors, so the result depends on neither machine nor threads.
constexpr int64_t kLanes = 16;

// Sums that are held in registers while the rows of so many examples pass by, each row a stream
// that the memory brings ahead; of more streams it loses track. Parameters of a block, whose sums
// stay in the second-level cache for the next examples.
constexpr int64_t kHeld = 32;
constexpr int64_t kStreams = 8;
constexpr int64_t kBlock = 4096;

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

// Adds the scaled values of the examples first … last - 1 to `count` sums, at most kHeld.
template <typename Scalar>
PRIVIMAGE_INLINE void add_examples(const KeptParts<Scalar>& kept, const double* scales,
                                   int64_t first, int64_t last, int64_t start, int64_t count,
                                   int64_t* sums) {
  int64_t held[kHeld];
  for (int64_t i = 0; i < count; ++i) held[i] = sums[i];
  for (int64_t example = first; example < last; ++example) {
    const double scale = scales[example];
    if (scale == 0.0) continue;
    const Scalar* row = kept.parts + example * kept.stride + start;
    for (int64_t i = 0; i < count; ++i) held[i] += grid_coordinate(row[i], scale);
  }
  for (int64_t i = 0; i < count; ++i) sums[i] = held[i];
}

template <typename Scalar>
PRIVIMAGE_INLINE void add_rows(const KeptParts<Scalar>& kept, const double* scales, bool accumulate,
                               int64_t* sums, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = std::min(block + kBlock, end);
    if (!accumulate) std::fill(sums + block, sums + stop, int64_t{0});
    for (int64_t first = 0; first < kept.examples; first += kStreams) {
      const int64_t last = std::min(first + kStreams, kept.examples);
      int64_t i = block;
      for (; i + kHeld <= stop; i += kHeld) {
        add_examples(kept, scales, first, last, i, kHeld, sums + i);
      }
      add_examples(kept, scales, first, last, i, stop - i, sums + i);
    }
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

// Writes the sums of the parameters begin … end - 1, or adds to them. An example of scale 0 is
// passed over.
PRIVIMAGE_CLONES void scaled_sum(const KeptParts<float>& kept, const double* scales,
                                 bool accumulate, int64_t* sums, int64_t begin, int64_t end) {
  add_rows(kept, scales, accumulate, sums, begin, end);
}
PRIVIMAGE_CLONES void scaled_sum(const KeptParts<double>& kept, const double* scales,
                                 bool accumulate, int64_t* sums, int64_t begin, int64_t end) {
  add_rows(kept, scales, accumulate, sums, begin, end);
}

// Writes job.sum for the parameters begin … end - 1, from job.scales.
template <typename Scalar>
inline void clipped_sum_sums(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  const KeptParts<Scalar> kept{job.parts, job.row_stride, job.examples, job.parameters};
  scaled_sum(kept, job.scales, false, job.sum, begin, end);
}

}  // namespace privimage::cpu
