// Group normalisation and SiLU on the CPU, over a range of examples: the caller brings the threads.
//
// A row is read from memory once a pass over it and stays in the second-level cache between passes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/group_norm_runs.h"
#include "cpu/layer_norm.h"
#include "shared/group_norm_silu.h"

namespace privimage::cpu {

// At least 1: an image without pixels has moments, too.
PRIVIMAGE_INLINE double values_a_group(const GroupNormShape& shape) {
  return double(std::max<int64_t>(width_of(shape) * shape.pixels, 1));
}

// The sum of a group's channels, in lanes where they are many: a fixed order on every machine.
template <typename Term>
PRIVIMAGE_INLINE double group_sum(const GroupNormShape& shape, int64_t group, Term term) {
  constexpr int64_t kSumLanes = 8;
  const int64_t width = width_of(shape), last = (group + 1) * width;
  int64_t c = group * width;
  double sum = 0.0;
  if (width >= kSumLanes) {
    double lanes[kSumLanes] = {};
    for (; c + kSumLanes <= last; c += kSumLanes) {
      for (int64_t lane = 0; lane < kSumLanes; ++lane) lanes[lane] += double(term(c + lane));
    }
    for (const double lane : lanes) sum += lane;
  }
  for (; c < last; ++c) sum += double(term(c));
  return sum;
}

// mean and rstd [groups] of a row, in two passes: squares of differences don't cancel.
template <typename Scalar>
PRIVIMAGE_INLINE void moments(const GroupNormShape& shape, const GroupNormScratch<Scalar>& at,
                              const Scalar* x, double eps, Scalar* mean, Scalar* rstd) {
  const double count = values_a_group(shape);
  for (int64_t line = 0; line < lines(shape); ++line) {
    std::fill_n(at.run_sums, at.run, Scalar(0));
    for_each_run(shape, at.run, line,
                 [&](int64_t begin, int64_t values) { add(values, x + begin, at.run_sums); });
    gather(shape, at.run, line, at.run_sums, at.sums);
  }
  for (int64_t g = 0; g < shape.groups; ++g) {
    mean[g] = Scalar(group_sum(shape, g, [&](int64_t c) { return at.sums[c]; }) / count);
  }
  for (int64_t line = 0; line < lines(shape); ++line) {
    lay_out(shape, at.run, line, at.first, [&](int64_t, int64_t g) { return mean[g]; });
    std::fill_n(at.run_sums, at.run, Scalar(0));
    for_each_run(shape, at.run, line, [&](int64_t begin, int64_t values) {
      add_squares(values, x + begin, at.first, at.run_sums);
    });
    gather(shape, at.run, line, at.run_sums, at.sums);
  }
  for (int64_t g = 0; g < shape.groups; ++g) {
    const double squares = group_sum(shape, g, [&](int64_t c) { return at.sums[c]; });
    rstd[g] = Scalar(1.0 / std::sqrt(squares / count + eps));
  }
}

// Lays out a and b with a x + b the normalised value, weight and bias included.
template <typename Scalar>
PRIVIMAGE_INLINE void lay_out_affine(const GroupNormShape& shape,
                                     const GroupNormScratch<Scalar>& at, int64_t line,
                                     const Scalar* mean, const Scalar* rstd, const Scalar* weight,
                                     const Scalar* bias) {
  const auto scale = [&](int64_t c, int64_t g) {
    return (weight ? weight[c] : Scalar(1)) * rstd[g];
  };
  lay_out(shape, at.run, line, at.first, scale);
  lay_out(shape, at.run, line, at.second, [&](int64_t c, int64_t g) {
    return (bias ? bias[c] : Scalar(0)) - mean[g] * scale(c, g);
  });
}

template <bool kSilu, typename Scalar>
PRIVIMAGE_INLINE void forward_row(const GroupNormSilu<Scalar>& job,
                                  const GroupNormScratch<Scalar>& at, int64_t row) {
  const GroupNormShape& shape = job.shape;
  const Scalar* x = job.x + row * shape.channels * shape.pixels;
  Scalar* y = job.y + row * shape.channels * shape.pixels;
  Scalar* mean = job.mean + row * shape.groups;
  Scalar* rstd = job.rstd + row * shape.groups;
  moments(shape, at, x, job.eps, mean, rstd);
  for (int64_t line = 0; line < lines(shape); ++line) {
    lay_out_affine(shape, at, line, mean, rstd, job.weight, job.bias);
    for_each_run(shape, at.run, line, [&](int64_t begin, int64_t values) {
      normalise<kSilu>(values, x + begin, at.first, at.second, y + begin);
    });
  }
}

// Leaves the gradient of the normalised values in grad_x, and its sums by channel in at.sums, times
// x - mean in at.products.
template <bool kSilu, typename Scalar>
PRIVIMAGE_INLINE void backward_sums(const GroupNormSiluBackward<Scalar>& job,
                                    const GroupNormScratch<Scalar>& at, int64_t row) {
  const GroupNormShape& shape = job.shape;
  const int64_t start = row * shape.channels * shape.pixels;
  const Scalar* mean = job.mean + row * shape.groups;
  const Scalar* rstd = job.rstd + row * shape.groups;
  for (int64_t line = 0; line < lines(shape); ++line) {
    lay_out_affine(shape, at, line, mean, rstd, job.weight, job.bias);
    lay_out(shape, at.run, line, at.third, [&](int64_t, int64_t g) { return mean[g]; });
    std::fill_n(at.run_sums, at.run, Scalar(0));
    std::fill_n(at.run_products, at.run, Scalar(0));
    for_each_run(shape, at.run, line, [&](int64_t begin, int64_t values) {
      add_slopes<kSilu>(values, job.x + start + begin, job.grad + start + begin, at.first,
                        at.second, at.third, job.grad_x + start + begin, at.run_sums,
                        at.run_products);
    });
    gather(shape, at.run, line, at.run_sums, at.sums);
    gather(shape, at.run, line, at.run_products, at.products);
  }
}

// grad_x from what `backward_sums` left: the normalised values' gradients, less their mean and less
// their part along x, a group at a time.
template <typename Scalar>
PRIVIMAGE_INLINE void backward_apply(const GroupNormSiluBackward<Scalar>& job,
                                     const GroupNormScratch<Scalar>& at, int64_t row) {
  const GroupNormShape& shape = job.shape;
  const double count = values_a_group(shape);
  const int64_t start = row * shape.channels * shape.pixels;
  const Scalar* mean = job.mean + row * shape.groups;
  const Scalar* rstd = job.rstd + row * shape.groups;
  const auto weight = [&](int64_t c) { return job.weight ? job.weight[c] : Scalar(1); };
  for (int64_t g = 0; g < shape.groups; ++g) {
    const double r = rstd[g];
    const double sum =
        group_sum(shape, g, [&](int64_t c) { return double(weight(c)) * double(at.sums[c]); });
    const double product =
        group_sum(shape, g, [&](int64_t c) { return double(weight(c)) * double(at.products[c]); });
    const double tilt = -r * r * r * product / count;
    at.tilts[g] = Scalar(tilt);
    at.shifts[g] = Scalar(-r * sum / count - tilt * double(mean[g]));
  }
  for (int64_t line = 0; line < lines(shape); ++line) {
    lay_out(shape, at.run, line, at.first,
            [&](int64_t c, int64_t g) { return weight(c) * rstd[g]; });
    lay_out(shape, at.run, line, at.second, [&](int64_t, int64_t g) { return at.tilts[g]; });
    lay_out(shape, at.run, line, at.third, [&](int64_t, int64_t g) { return at.shifts[g]; });
    for_each_run(shape, at.run, line, [&](int64_t begin, int64_t values) {
      combine(values, job.x + start + begin, at.first, at.second, at.third,
              job.grad_x + start + begin);
    });
  }
}

// Adds a row's part to its example's weight and bias gradients; the first one may be written over.
template <typename Scalar>
PRIVIMAGE_INLINE void backward_affine(const GroupNormSiluBackward<Scalar>& job,
                                      const GroupNormScratch<Scalar>& at, int64_t row, bool add) {
  const GroupNormShape& shape = job.shape;
  const int64_t example = row / shape.draws;
  const Scalar* rstd = job.rstd + row * shape.groups;
  if (job.grad_weight) {
    Scalar* to = job.grad_weight + example * job.weight_stride;
    const int64_t width = width_of(shape);
    for (int64_t g = 0; g < shape.groups; ++g) {
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const Scalar part = at.products[c] * rstd[g];
        to[c] = add ? to[c] + part : part;
      }
    }
  }
  if (job.grad_bias) {
    Scalar* to = job.grad_bias + example * job.bias_stride;
    for (int64_t c = 0; c < shape.channels; ++c) to[c] = add ? to[c] + at.sums[c] : at.sums[c];
  }
}

template <typename Scalar>
PRIVIMAGE_INLINE void forward(const GroupNormSilu<Scalar>& job, int64_t begin, int64_t end) {
  if (is_layer_norm(job.shape)) return normalise_tokens(job, begin, end);
  const GroupNormScratch<Scalar> at(job.shape);
  for (int64_t row = begin * job.shape.draws; row < end * job.shape.draws; ++row) {
    if (job.shape.silu) {
      forward_row<true>(job, at, row);
    } else {
      forward_row<false>(job, at, row);
    }
  }
}

template <typename Scalar>
PRIVIMAGE_INLINE void backward(const GroupNormSiluBackward<Scalar>& job, int64_t begin,
                               int64_t end) {
  if (is_layer_norm(job.shape)) return tokens_backward(job, begin, end);
  const GroupNormScratch<Scalar> at(job.shape);
  for (int64_t row = begin * job.shape.draws; row < end * job.shape.draws; ++row) {
    if (job.shape.silu) {
      backward_sums<true>(job, at, row);
    } else {
      backward_sums<false>(job, at, row);
    }
    backward_apply(job, at, row);
    backward_affine(job, at, row, job.accumulate || row % job.shape.draws != 0);
  }
}

// The examples begin … end - 1.
PRIVIMAGE_CLONES void group_norm_silu(const GroupNormSilu<float>& job, int64_t begin, int64_t end) {
  forward(job, begin, end);
}
inline void group_norm_silu(const GroupNormSilu<double>& job, int64_t begin, int64_t end) {
  forward(job, begin, end);
}
PRIVIMAGE_CLONES void group_norm_silu_backward(const GroupNormSiluBackward<float>& job,
                                               int64_t begin, int64_t end) {
  backward(job, begin, end);
}
inline void group_norm_silu_backward(const GroupNormSiluBackward<double>& job, int64_t begin,
                                     int64_t end) {
  backward(job, begin, end);
}

}  // namespace privimage::cpu
