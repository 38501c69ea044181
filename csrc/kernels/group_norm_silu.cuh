// The kernels of the fused normalisation, as functions of a block; the plan is made by the host.
#pragma once

#include <cmath>

#include "kernels/group_norm_silu.h"
#include "kernels/group_norm_slab.cuh"

namespace privimage::cuda {

template <typename Real>
PRIVIMAGE_DEVICE Real sigmoid(Real x) {
  return Real(1) / (Real(1) + std::exp(-x));
}

// a x + b is the normalised value, weight and bias included; one of each a channel of a vector.
template <typename Real, int kChannels>
struct Affine {
  Real a[kChannels], b[kChannels], centre[kChannels];
};

template <typename Slab, typename Job>
PRIVIMAGE_DEVICE auto affine(const Slab& slab, const Job& job, int column) {
  using Real = typename Slab::Real;
  Affine<Real, Slab::kChannels> affine;
#pragma unroll
  for (int i = 0; i < Slab::kChannels; ++i) {
    const int of_slab = column * Slab::kChannels + i, channel = slab.channel(of_slab);
    const int group = slab.group(of_slab);
    affine.centre[i] = slab.group_values(0).load(group);
    affine.a[i] = (job.weight ? job.weight[channel] : Real(1)) * slab.group_values(1).load(group);
    affine.b[i] = (job.bias ? job.bias[channel] : Real(0)) - affine.centre[i] * affine.a[i];
  }
  return affine;
}

// Grid: rows, slabs. Means first, then squares of differences, which don't cancel.
template <typename Scalar, int kValues, bool kLast>
PRIVIMAGE_DEVICE void group_norm_forward(const Block& block, const GroupNormOnGpu<Scalar>& given) {
  using Slab = GroupNormSlab<Scalar, kValues, kLast>;
  using Columns = typename Slab::Columns;
  using Real = Wide<Scalar>;
  const GroupNormSilu<Scalar>& job = given.job;
  const Slab slab(block, job.shape, given.plan);
  const Scalar* x = job.x + slab.row_start();
  Scalar* y = job.y + slab.row_start();
  const Shared<Real> mean = slab.group_values(0), rstd = slab.group_values(1);
  slab.bring(0, x);
  slab.wait_for_arrays();
  slab.for_each_columns([&](const Columns& at) {
    Real sums[1][Slab::kChannels] = {};
    slab.for_each_vector(at, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[0][i % Slab::kChannels] += widen(values.at[i]);
    });
    slab.add_lanes(at, sums);
  });
  block.barrier();
  for (int group = block.thread(); group < slab.groups(); group += kNormThreads) {
    const double sum = slab.group_sum(group, [&](int c) { return slab.totals(1).load(c); });
    mean.store(group, static_cast<Real>(sum / slab.count()));
  }
  block.barrier();
  slab.for_each_columns([&](const Columns& at) {
    Real sums[1][Slab::kChannels] = {};
    const auto centre = slab.of_channels(0, at);
    slab.for_each_vector(at, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels;
        const Real difference = widen(values.at[i]) - centre.at[c];
        sums[0][c] += difference * difference;
      }
    });
    slab.add_lanes(at, sums);
  });
  block.barrier();
  for (int group = block.thread(); group < slab.groups(); group += kNormThreads) {
    const double squares = slab.group_sum(group, [&](int c) { return slab.totals(1).load(c); });
    rstd.store(group, static_cast<Real>(1.0 / std::sqrt(squares / slab.count() + job.eps)));
    job.mean[slab.group_start() + group] = mean.load(group);
    job.rstd[slab.group_start() + group] = rstd.load(group);
  }
  block.barrier();
  slab.for_each_columns([&](const Columns& at) {
    if (at.lane >= at.lanes) return;
    const auto of = affine(slab, job, at.column);
    slab.for_each_vector(at, [&](int offset, int slot) {
      auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels;
        const Real value = of.a[c] * widen(values.at[i]) + of.b[c];
        values.at[i] = narrow<Scalar>(job.shape.silu ? value * sigmoid(value) : value);
      }
      Slab::write(y + offset, values);
    });
  });
}

// The gradient of a x + b.
template <typename Real>
PRIVIMAGE_DEVICE Real slope(Real grad, Real a, Real x, Real b, bool silu) {
  if (!silu) return grad;
  const Real value = a * x + b, s = sigmoid(value);
  return grad * (s * (Real(1) + value * (Real(1) - s)));
}

// Grid: rows, slabs. grad_x is the normalised values' gradient, less its mean and less its part
// along x, a group at a time. The sums by channel go to `row_sums`, an example's draws apart.
template <typename Scalar, int kValues, bool kLast>
PRIVIMAGE_DEVICE void group_norm_backward(const Block& block,
                                          const GroupNormBackwardOnGpu<Scalar>& given) {
  using Slab = GroupNormSlab<Scalar, kValues, kLast>;
  using Columns = typename Slab::Columns;
  using Real = Wide<Scalar>;
  const GroupNormSiluBackward<Scalar>& job = given.job;
  const GroupNormShape& shape = job.shape;
  const Slab slab(block, shape, given.plan);
  const Scalar *x = job.x + slab.row_start(), *grad = job.grad + slab.row_start();
  Scalar* grad_x = job.grad_x + slab.row_start();
  const Shared<Real> mean = slab.group_values(0), rstd = slab.group_values(1);
  const Shared<Real> tilts = slab.group_values(2), shifts = slab.group_values(3);
  slab.bring(0, x);
  slab.bring(1, grad);
  for (int group = block.thread(); group < slab.groups(); group += kNormThreads) {
    mean.store(group, job.mean[slab.group_start() + group]);
    rstd.store(group, job.rstd[slab.group_start() + group]);
  }
  block.barrier();
  slab.wait_for_arrays();
  slab.for_each_columns([&](const Columns& at) {
    Real sums[2][Slab::kChannels] = {};
    if (at.lane < at.lanes) {
      const auto of = affine(slab, job, at.column);
      slab.for_each_vector(at, [&](int offset, int slot) {
        const auto values = slab.read(0, x, offset, slot);
        const auto grads = slab.read(1, grad, offset, slot);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const int c = i % Slab::kChannels;
          const Real value = widen(values.at[i]);
          const Real s = slope(widen(grads.at[i]), of.a[c], value, of.b[c], shape.silu);
          sums[0][c] += s;
          sums[1][c] += s * (value - of.centre[c]);
        }
      });
    }
    slab.add_lanes(at, sums);
  });
  block.barrier();
  const Shared<Real> totals = slab.totals(2);
  for (int c = block.thread(); c < slab.channels() && given.row_sums; c += kNormThreads) {
    Real* to = given.row_sums + 2 * slab.row() * shape.channels + slab.channel(c);
    to[0] = totals.load(c);
    to[shape.channels] = totals.load(slab.channels() + c) * rstd.load(slab.group(c));
  }
  for (int group = block.thread(); group < slab.groups(); group += kNormThreads) {
    const double r = rstd.load(group);
    const auto weighted = [&](int first) {
      return slab.group_sum(group, [&](int c) {
        const double weight = job.weight ? job.weight[slab.channel(c)] : Real(1);
        return weight * static_cast<double>(totals.load(first + c));
      });
    };
    const double tilt = -r * r * r * weighted(slab.channels()) / slab.count();
    tilts.store(group, static_cast<Real>(tilt));
    shifts.store(group, static_cast<Real>(-r * weighted(0) / slab.count() -
                                          tilt * static_cast<double>(mean.load(group))));
  }
  block.barrier();
  slab.for_each_columns([&](const Columns& at) {
    if (at.lane >= at.lanes) return;
    const auto of = affine(slab, job, at.column);
    const auto tilt = slab.of_channels(2, at), shift = slab.of_channels(3, at);
    slab.for_each_vector(at, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
      auto grads = slab.read(1, grad, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels;
        const Real value = widen(values.at[i]);
        const Real s = slope(widen(grads.at[i]), of.a[c], value, of.b[c], shape.silu);
        grads.at[i] = narrow<Scalar>(of.a[c] * s + tilt.at[c] * value + shift.at[c]);
      }
      Slab::write(grad_x + offset, grads);
    });
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
