// The clipped sum on the CPU, over a range of examples or parameters: the caller brings the
// threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/example_weight_grad_isa.h"
#include "shared/clipped_sum.h"
#include "shared/grid.h"
#include "shared/scaled_sum.h"

namespace privimage::cpu {

// Examples whose rows pass by the sums at a time, each row a stream that the memory brings ahead:
// of more streams it loses track. Parameters of a block, whose sums stay in the second-level cache
// for the next examples.
constexpr int64_t kStreams = 8;
constexpr int64_t kBlock = 4096;

// Writes job.scales for the examples begin … end - 1.
template <typename Scalar>
inline void clipped_sum_scales(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  const auto squared_norm = tile_sets<Scalar>()->squared_norm;
  for (int64_t example = begin; example < end; ++example) {
    const Scalar* row = job.parts + example * job.row_stride;
    job.scales[example] = grid_scale(squared_norm(row, job.parameters), job.rule);
  }
}

// Writes the sums of the parameters begin … end - 1, or adds to them. An example of scale 0 is
// passed over.
template <typename Scalar>
inline void scaled_sum(const KeptParts<Scalar>& kept, const double* scales, bool accumulate,
                       int64_t* sums, int64_t begin, int64_t end) {
  const auto add_rows = tile_sets<Scalar>()->add_rows;
  const SumsAre written = kept.examples > kStreams ? SumsAre::kWritten : SumsAre::kStreamed;
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t count = std::min(kBlock, end - block);
    if (!accumulate && kept.examples == 0) std::fill_n(sums + block, count, int64_t{0});
    for (int64_t first = 0; first < kept.examples; first += kStreams) {
      const ScaledRows<Scalar> rows{kept.parts + first * kept.stride + block, kept.stride,
                                    scales + first, std::min(kStreams, kept.examples - first)};
      add_rows(rows, count, accumulate || first > 0 ? SumsAre::kAdded : written, sums + block);
    }
  }
  finish_streams();
}

// Writes job.sum for the parameters begin … end - 1, from job.scales.
template <typename Scalar>
inline void clipped_sum_sums(const ClippedSum<Scalar>& job, int64_t begin, int64_t end) {
  const KeptParts<Scalar> kept{job.parts, job.row_stride, job.examples, job.parameters};
  scaled_sum(kept, job.scales, false, job.sum, begin, end);
}

}  // namespace privimage::cpu
