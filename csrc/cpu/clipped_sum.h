// The clipped sum on the CPU, over a range of examples or parameters: the caller brings the
// threads.
#pragma once

#include <cstdint>

#include "cpu/scaled_sum.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"

namespace privimage::cpu {

// Writes job.scales for the examples begin … end - 1.
template <typename Scalar>
inline void clipped_sum_scales(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  const auto squared_norm = tile_sets<Scalar>()->squared_norm;
  for (int64_t example = begin; example < end; ++example) {
    const Scalar* row = job.parts + example * job.row_stride;
    job.scales[example] = grid_scale(squared_norm(row, job.parameters), job.rule);
  }
}

// Writes job.sum for the parameters begin … end - 1, from job.scales.
template <typename Scalar>
inline void clipped_sum_sums(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  const KeptParts<Scalar> kept{job.parts, job.row_stride, job.examples, job.parameters};
  scaled_sum(kept, job.scales, false, job.sum, begin, end);
}

}  // namespace privimage::cpu
