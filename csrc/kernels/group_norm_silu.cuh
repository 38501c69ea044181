// The kernels of the fused normalisation, as functions of a block; the plan is made by the host.
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels/group_norm_silu.h"
#include "kernels/group_norm_slab.cuh"
#include "kernels/sigmoid.h"

namespace privimage::cuda {

// Calls body with whether there is SiLU as a type: a loop asks before its first value, not at each.
template <typename Body>
PRIVIMAGE_DEVICE void with_silu(bool silu, Body body) {
  if (silu) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

template <bool kSilu, typename Real>
PRIVIMAGE_DEVICE Real activation(Real value) {
  if constexpr (kSilu) {
    return value * sigmoid(value);
  } else {
    return value;
  }
}

template <bool kSilu, typename Real>
PRIVIMAGE_DEVICE Real activation_grad(Real grad, Real value) {
  if constexpr (kSilu) {
    const Real s = sigmoid(value);
    return grad * (s * std::fma(value, Real(1) - s, Real(1)));
  } else {
    return grad;
  }
}

// Means first, then squares of differences, which don't cancel.
template <typename Scalar, int kValues, bool kLast>
PRIVIMAGE_DEVICE void group_norm_forward(const Block& block, const GroupNormOnGpu<Scalar>& given) {
  using Slab = GroupNormSlab<Scalar, kValues, kLast>;
  using Column = typename Slab::Column;
  using Real = Wide<Scalar>;
  const GroupNormSilu<Scalar>& job = given.job;
  const Slab slab(block, job.shape, given.plan);
  const Scalar* x = job.x + slab.row_start();
  Scalar* y = job.y + slab.row_start();
  slab.bring(x);
  // For the same threads to read when the moments are known.
  slab.for_each_channel([&](int c) {
    slab.set(kScale, c, job.weight ? job.weight[slab.channel(c)] : Real(1));
    slab.set(kOffset, c, job.bias ? job.bias[slab.channel(c)] : Real(0));
  });
  slab.wait_for_arrays();
  slab.for_each_column([&](const Column& column) {
    Real sums[1][Slab::kChannels] = {};
    slab.for_each_vector(column, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[0][i % Slab::kChannels] += values.at[i];
    });
    slab.add_lanes(column, sums);
  });
  slab.template add_parts<1>();
  const auto mean_of_totals = [&](int c) {
    return slab.group_sum(c, [&](int of) { return slab.totals(1).load(of); }) / slab.count();
  };
  slab.for_each_channel([&](int c) { slab.set(kCentre, c, static_cast<Real>(mean_of_totals(c))); });
  block.barrier();
  slab.for_each_column([&](const Column& column) {
    Real sums[1][Slab::kChannels] = {};
    const auto centre = slab.of_channels(kCentre, column);
    slab.for_each_vector(column, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels;
        const Real difference = values.at[i] - centre.at[c];
        sums[0][c] = std::fma(difference, difference, sums[0][c]);
      }
    });
    slab.add_lanes(column, sums);
  });
  slab.template add_parts<1>();
  slab.for_each_channel([&](int c) {
    const Real mean = slab.get(kCentre, c);
    const Real rstd = static_cast<Real>(1.0 / std::sqrt(mean_of_totals(c) + job.eps));
    const Real scale = slab.get(kScale, c) * rstd;
    slab.set(kScale, c, scale);
    slab.set(kOffset, c, slab.get(kOffset, c) - mean * scale);
    slab.set(kRstd, c, rstd);
  });
  block.barrier();
  with_silu(job.shape.silu, [&](auto silu) {
    slab.for_each_column([&](const Column& column) {
      const auto a = slab.of_channels(kScale, column), b = slab.of_channels(kOffset, column);
      slab.for_each_vector(column, [&](int offset, int slot) {
        auto values = slab.read(0, x, offset, slot);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const int c = i % Slab::kChannels;
          values.at[i] =
              activation<decltype(silu)::value>(std::fma(a.at[c], values.at[i], b.at[c]));
        }
        slab.write(y + offset, values);
      });
    });
  });
  slab.for_each_group([&](int group, int c) {
    const bool empty = slab.channels() == 0;
    job.mean[slab.moments(group)] = empty ? Real(0) : slab.get(kCentre, c);
    job.rstd[slab.moments(group)] =
        empty ? static_cast<Real>(1.0 / std::sqrt(job.eps)) : slab.get(kRstd, c);
  });
}

// grad_x is the normalised values' gradient, less its mean and less its part along x, a group at a
// time. The sums by channel go to `row_sums`, an example's draws apart.
template <typename Scalar, int kValues, bool kLast>
PRIVIMAGE_DEVICE void group_norm_backward(const Block& block,
                                          const GroupNormBackwardOnGpu<Scalar>& given) {
  using Slab = GroupNormSlab<Scalar, kValues, kLast>;
  using Column = typename Slab::Column;
  using Real = Wide<Scalar>;
  const GroupNormSiluBackward<Scalar>& job = given.job;
  const GroupNormShape& shape = job.shape;
  const Slab slab(block, shape, given.plan);
  const Scalar *x = job.x + slab.row_start(), *grad = job.grad + slab.row_start();
  Scalar* grad_x = job.grad_x + slab.row_start();
  slab.bring(x, grad);
  slab.for_each_channel([&](int c) {
    const int64_t moments = slab.moments(slab.group(c));
    const Real mean = job.mean[moments], rstd = job.rstd[moments];
    const Real scale = (job.weight ? job.weight[slab.channel(c)] : Real(1)) * rstd;
    slab.set(kRstd, c, rstd);
    slab.set(kCentre, c, mean);
    slab.set(kScale, c, scale);
    slab.set(kOffset, c, (job.bias ? job.bias[slab.channel(c)] : Real(0)) - mean * scale);
  });
  block.barrier();
  slab.wait_for_arrays();
  with_silu(shape.silu, [&](auto silu) {
    slab.for_each_column([&](const Column& column) {
      Real sums[2][Slab::kChannels] = {};
      const auto a = slab.of_channels(kScale, column), b = slab.of_channels(kOffset, column);
      const auto centre = slab.of_channels(kCentre, column);
      slab.for_each_vector(column, [&](int offset, int slot) {
        const auto values = slab.read(0, x, offset, slot);
        const auto grads = slab.read(1, grad, offset, slot);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const int c = i % Slab::kChannels;
          const Real value = std::fma(a.at[c], values.at[i], b.at[c]);
          const Real s = activation_grad<decltype(silu)::value>(grads.at[i], value);
          sums[0][c] += s;
          sums[1][c] = std::fma(s, values.at[i] - centre.at[c], sums[1][c]);
        }
      });
      slab.add_lanes(column, sums);
    });
  });
  slab.template add_parts<2>();
  const Shared<Real> totals = slab.totals(2);
  slab.for_each_channel([&](int c) {
    const auto mean_of = [&](int first) {
      return slab.group_sum(c, [&](int of) {
        return static_cast<double>(slab.get(kScale, of)) *
               static_cast<double>(totals.load(first + of));
      }) / slab.count();
    };
    const double rstd = slab.get(kRstd, c), tilt = -rstd * rstd * mean_of(slab.channels());
    slab.set(kTilt, c, static_cast<Real>(tilt));
    slab.set(kShift, c,
             static_cast<Real>(-mean_of(0) - tilt * static_cast<double>(slab.get(kCentre, c))));
  });
  block.barrier();
  with_silu(shape.silu, [&](auto silu) {
    slab.for_each_column([&](const Column& column) {
      const auto a = slab.of_channels(kScale, column), b = slab.of_channels(kOffset, column);
      const auto tilt = slab.of_channels(kTilt, column), shift = slab.of_channels(kShift, column);
      slab.for_each_vector(column, [&](int offset, int slot) {
        const auto values = slab.read(0, x, offset, slot);
        auto grads = slab.read(1, grad, offset, slot);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const int c = i % Slab::kChannels;
          const Real value = std::fma(a.at[c], values.at[i], b.at[c]);
          const Real s = activation_grad<decltype(silu)::value>(grads.at[i], value);
          grads.at[i] = std::fma(a.at[c], s, std::fma(tilt.at[c], values.at[i], shift.at[c]));
        }
        slab.write(grad_x + offset, grads);
      });
    });
  });
  if (given.row_sums == nullptr) return;
  slab.for_each_channel([&](int c) {
    Real* to = given.row_sums + 2 * slab.row() * shape.channels + slab.channel(c);
    to[0] = totals.load(c);
    to[shape.channels] = totals.load(slab.channels() + c) * slab.get(kRstd, c);
  });
}

// Grid: examples, blocks of channels. Adds up an example's draws, in their order.
template <typename Scalar>
PRIVIMAGE_DEVICE void group_norm_affine(const Block& block,
                                        const GroupNormBackwardOnGpu<Scalar>& given) {
  using Real = Wide<Scalar>;
  const GroupNormSiluBackward<Scalar>& job = given.job;
  const int64_t channels = job.shape.channels, draws = job.shape.draws;
  const int64_t example = block.x(), channel = block.y() * kNormThreads + block.thread();
  if (channel >= channels) return;
  const Real* row = given.row_sums + 2 * example * draws * channels + channel;
  Real for_bias = 0, for_weight = 0;
  for (int64_t draw = 0; draw < draws; ++draw) {
    for_bias += row[0];
    for_weight += row[channels];
    row += 2 * channels;
  }
  given.rows.weight.keep(block, example, channel, for_weight);
  given.rows.bias.keep(block, example, channel, for_bias);
}

}  // namespace privimage::cuda
