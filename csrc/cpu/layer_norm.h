// Layer normalisation on the CPU, over a range of examples: group normalisation where a row is one
// pixel, a token, whose channels are one group. The caller brings the threads.
//
// A row's few values stay in the first-level cache between the passes over them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "shared/group_norm_silu.h"

namespace privimage::cpu {

PRIVIMAGE_INLINE bool is_layer_norm(const GroupNormShape& shape) {
  return shape.pixels == 1 && shape.groups == 1 && !shape.silu;
}

// Sums run in so many lanes, added pairwise at the end: a fixed order on every machine.
constexpr int64_t kRowLanes = 32;

template <typename Scalar>
PRIVIMAGE_INLINE Scalar pairwise(Scalar* lanes) {
  for (int64_t half = kRowLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// The sum of term(0) … term(count - 1).
template <typename Scalar, typename Term>
PRIVIMAGE_INLINE Scalar row_sum(int64_t count, Term term) {
  Scalar lanes[kRowLanes] = {};
  int64_t c = 0;
  for (; c + kRowLanes <= count; c += kRowLanes) {
    for (int64_t lane = 0; lane < kRowLanes; ++lane) lanes[lane] += term(c + lane);
  }
  for (int64_t lane = 0; c + lane < count; ++lane) lanes[lane] += term(c + lane);
  return pairwise(lanes);
}

// [channels] each, of all rows: given values, or what stands for those that were left out.
template <typename Scalar>
PRIVIMAGE_INLINE void fill_in(const Scalar* given, Scalar otherwise, int64_t count, Scalar* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = given ? given[c] : otherwise;
}

template <typename Scalar>
PRIVIMAGE_INLINE void normalise_tokens(const GroupNormSilu<Scalar>& job, int64_t begin,
                                       int64_t end) {
  const int64_t channels = job.shape.channels, draws = job.shape.draws;
  const Scalar count = Scalar(std::max<int64_t>(channels, 1));
  static thread_local Scratch<Scalar> scratch;
  Scalar* const weight = scratch.at_least(2 * channels);
  Scalar* const bias = weight + channels;
  fill_in(job.weight, Scalar(1), channels, weight);
  fill_in(job.bias, Scalar(0), channels, bias);
  for (int64_t row = begin * draws; row < end * draws; ++row) {
    const Scalar* x = job.x + row * channels;
    const Scalar mean = row_sum<Scalar>(channels, [x](int64_t c) { return x[c]; }) / count;
    const Scalar squares = row_sum<Scalar>(channels, [x, mean](int64_t c) {
      const Scalar difference = x[c] - mean;  // squares of differences don't cancel
      return difference * difference;
    });
    const Scalar rstd = Scalar(1.0 / std::sqrt(double(squares) / double(count) + job.eps));
    job.mean[row] = mean;
    job.rstd[row] = rstd;
    Scalar* y = job.y + row * channels;
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) y[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
  }
}

// Of a row: `weight` times grad, and that times x - mean.
template <typename Scalar>
struct RowSums {
  Scalar sum, product;
};

// Adds a row's part to the gradients of weight and bias.
template <typename Scalar>
PRIVIMAGE_INLINE RowSums<Scalar> add_row(int64_t count, const Scalar* __restrict__ x,
                                         const Scalar* __restrict__ grad,
                                         const Scalar* __restrict__ weight, Scalar mean,
                                         Scalar rstd, Scalar* __restrict__ for_weight,
                                         Scalar* __restrict__ for_bias) {
  Scalar sums[kRowLanes] = {}, products[kRowLanes] = {};
  const auto add = [&](int64_t c, int64_t lane) {
    const Scalar product = grad[c] * (x[c] - mean);
    sums[lane] += weight[c] * grad[c];
    products[lane] += weight[c] * product;
    for_weight[c] += product * rstd;
    for_bias[c] += grad[c];
  };
  int64_t c = 0;
  for (; c + kRowLanes <= count; c += kRowLanes) {
#pragma GCC ivdep
    for (int64_t lane = 0; lane < kRowLanes; ++lane) add(c + lane, lane);
  }
  for (int64_t lane = 0; c + lane < count; ++lane) add(c + lane, lane);
  return {pairwise(sums), pairwise(products)};
}

template <typename Scalar>
PRIVIMAGE_INLINE void tokens_backward(const GroupNormSiluBackward<Scalar>& job, int64_t begin,
                                      int64_t end) {
  const int64_t channels = job.shape.channels, draws = job.shape.draws;
  const Scalar count = Scalar(std::max<int64_t>(channels, 1));
  static thread_local Scratch<Scalar> scratch;
  Scalar* const weight = scratch.at_least(3 * channels);
  Scalar* const for_weight = weight + channels;
  Scalar* const for_bias = for_weight + channels;
  fill_in(job.weight, Scalar(1), channels, weight);
  const auto hand_out = [&](const Scalar* sums, Scalar* to) {
    for (int64_t c = 0; c < channels; ++c) to[c] = job.accumulate ? to[c] + sums[c] : sums[c];
  };
  for (int64_t example = begin; example < end; ++example) {
    std::fill_n(for_weight, 2 * channels, Scalar(0));
    for (int64_t row = example * draws; row < (example + 1) * draws; ++row) {
      const Scalar *x = job.x + row * channels, *grad = job.grad + row * channels;
      const Scalar mean = job.mean[row], rstd = job.rstd[row];
      const RowSums<Scalar> of =
          add_row(channels, x, grad, weight, mean, rstd, for_weight, for_bias);
      const Scalar shift = of.sum / count, tilt = rstd * rstd * of.product / count;
      Scalar* to = job.grad_x + row * channels;
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        to[c] = (weight[c] * grad[c] - shift - (x[c] - mean) * tilt) * rstd;
      }
    }
    if (job.grad_weight) hand_out(for_weight, job.grad_weight + example * job.weight_stride);
    if (job.grad_bias) hand_out(for_bias, job.grad_bias + example * job.bias_stride);
  }
}

}  // namespace privimage::cpu
