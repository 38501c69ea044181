// The kernels of the fused normalisation, as functions of a block; the plan is made by the host.
//
// A block has a slab: some whole groups of one row. Where values come 16 bytes at a time, the slab
// is brought into shared memory once, and each thread goes over its own vectors of it in every
// pass; else each pass reads global memory. A thread stays with one column, a vector's channels or
// one channel, and shares it with the threads of the other lanes, which have other pixels.
#pragma once

#include <cmath>

#include "kernels/block.h"
#include "kernels/group_norm_silu.h"

namespace privimage::cuda {

template <typename Real>
PRIVIMAGE_DEVICE Real sigmoid(Real x) {
  return Real(1) / (Real(1) + std::exp(-x));
}

// kValues of 1: one at a time, in whichever layout the shape says; kLast is not looked at.
template <typename Scalar, int kValues, bool kLast>
class GroupNormSlab {
 public:
  using Real = Wide<Scalar>;
  static constexpr int kChannels = kLast ? kValues : 1;  // of a vector
  using Values = Vector<Scalar, kValues>;

  // Columns from `first` on, which the threads take side by side.
  struct Columns {
    int lanes;   // threads of a column
    int column;  // of this thread
    int lane;    // its place among the threads of the column; from `lanes` on it has nothing to do
    int next;    // the thread of the next lane is so many away
    int slot;    // of its first vector in shared memory, counted in vectors
  };

  PRIVIMAGE_DEVICE GroupNormSlab(const Block& block, const GroupNormShape& shape,
                                 const GroupNormPlan& plan)
      : block_(block),
        shape_(shape),
        plan_(plan),
        first_group_(static_cast<int>(block.y()) * plan.slab_groups),
        groups_(least(plan.slab_groups, static_cast<int>(shape.groups) - first_group_)),
        width_(static_cast<int>(shape.channels / shape.groups)),
        columns_(groups_ * width_ / kChannels),
        positions_(static_cast<int>(shape.pixels) / (kValues / kChannels)) {}

  PRIVIMAGE_DEVICE int64_t row() const { return block_.x(); }
  PRIVIMAGE_DEVICE int64_t row_start() const { return row() * shape_.channels * shape_.pixels; }
  PRIVIMAGE_DEVICE int64_t group_start() const { return row() * shape_.groups + first_group_; }
  PRIVIMAGE_DEVICE int groups() const { return groups_; }
  PRIVIMAGE_DEVICE int channels() const { return groups_ * width_; }
  // Of the row, from a channel of the slab.
  PRIVIMAGE_DEVICE int channel(int of_slab) const { return first_group_ * width_ + of_slab; }
  PRIVIMAGE_DEVICE int group(int channel) const { return channel / width_; }
  // An image without pixels has moments, too.
  PRIVIMAGE_DEVICE double count() const {
    const int64_t values = width_ * shape_.pixels;
    return static_cast<double>(values > 0 ? values : 1);
  }

  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_columns(Body body) const {
    Columns at;
    at.slot = block_.thread();
    for (int first = 0; first < columns_; first += kNormThreads) {
      const int width = least(kNormThreads, columns_ - first), thread = block_.thread();
      at.lanes = kNormThreads / width;
      at.lane = last() ? thread / width : thread % at.lanes;
      at.column = first + (last() ? thread % width : thread / at.lanes);
      if (!last() && at.column >= first + width) at.lane = at.lanes;
      at.next = last() ? width : 1;
      body(at);
      at.slot += (positions_ + at.lanes - 1) / at.lanes * kNormThreads;
    }
  }

  // body(where the vector starts in the row, its slot).
  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_vector(const Columns& at, Body body) const {
    if (at.lane >= at.lanes) return;
    int slot = at.slot;
    for (int position = at.lane; position < positions_; position += at.lanes) {
      body(last() ? position * static_cast<int>(shape_.channels) + channel(at.column * kChannels)
                  : channel(at.column) * static_cast<int>(shape_.pixels) + position * kValues,
           slot);
      slot += kNormThreads;
    }
  }

  // Brings this thread's vectors of one more array into shared memory.
  PRIVIMAGE_DEVICE void bring(int array, const Scalar* row) const {
    if constexpr (kValues > 1) {
      const Shared<Scalar> to = kept(array);
      for_each_columns([&](const Columns& at) {
        for_each_vector(
            at, [&](int offset, int slot) { block_.copy16(to, slot * kValues, row + offset, 16); });
      });
    }
  }
  // Nobody reads another thread's vectors, so a thread waits for its own alone.
  PRIVIMAGE_DEVICE void wait_for_arrays() const {
    if constexpr (kValues > 1) {
      block_.commit();
      block_.template wait<0>();
    }
  }
  PRIVIMAGE_DEVICE Values read(int array, const Scalar* row, int offset, int slot) const {
    if constexpr (kValues > 1) {
      return kept(array).template load_vector<kValues>(slot * kValues);
    } else {
      return {row[offset]};
    }
  }
  PRIVIMAGE_DEVICE static void write(Scalar* to, const Values& values) {
    *reinterpret_cast<Values*>(to) = values;
  }

  // Adds up by channel what this thread's sums [kSums, kChannels] and those of the other lanes are,
  // in a fixed order, into `totals`. All threads call it; those without a column bring nothing.
  template <int kSums>
  PRIVIMAGE_DEVICE void add_lanes(const Columns& at, Real (&sums)[kSums][kChannels]) const {
    const Shared<Real> partials = block_.template shared<Real>(static_cast<int>(plan_.partials_at),
                                                               kSums * kChannels * kNormThreads);
    const int thread = block_.thread();
#pragma unroll
    for (int i = 0; i < kSums * kChannels; ++i) {
      partials.store(i * kNormThreads + thread, sums[i / kChannels][i % kChannels]);
    }
    for (int half = kNormThreads / 2; half > 0; half /= 2) {
      if (half >= at.lanes) continue;
      block_.barrier();
      if (at.lane >= half || at.lane + half >= at.lanes) continue;
#pragma unroll
      for (int i = 0; i < kSums * kChannels; ++i) {
        const int mine = i * kNormThreads + thread;
        partials.store(mine, partials.load(mine) + partials.load(mine + half * at.next));
      }
    }
    if (at.lane != 0) return;
#pragma unroll
    for (int i = 0; i < kSums * kChannels; ++i) {
      const int total = i / kChannels * channels() + at.column * kChannels + i % kChannels;
      totals(kSums).store(total, partials.load(i * kNormThreads + thread));
    }
  }

  // [sums, channels]
  PRIVIMAGE_DEVICE Shared<Real> totals(int sums) const {
    return block_.template shared<Real>(static_cast<int>(plan_.totals_at), sums * channels());
  }
  // One of four numbers of each group: mean, 1 / deviation, tilt, shift.
  PRIVIMAGE_DEVICE Shared<Real> group_values(int which) const {
    const int at = static_cast<int>(plan_.groups_at) +
                   which * plan_.slab_groups * static_cast<int>(sizeof(Real));
    return block_.template shared<Real>(at, groups_);
  }

  // The sum of term(channel of the slab) over a group.
  template <typename Term>
  PRIVIMAGE_DEVICE double group_sum(int group, Term term) const {
    double sum = 0.0;
    for (int c = group * width_; c < (group + 1) * width_; ++c) sum += term(c);
    return sum;
  }

 private:
  PRIVIMAGE_DEVICE static int least(int a, int b) { return a < b ? a : b; }
  PRIVIMAGE_DEVICE bool last() const { return kValues > 1 ? kLast : shape_.channels_last; }
  PRIVIMAGE_DEVICE Shared<Scalar> kept(int array) const {
    const int bytes = static_cast<int>(plan_.array_bytes);
    return block_.template shared<Scalar>(array * bytes, bytes / static_cast<int>(sizeof(Scalar)));
  }

  const Block block_;
  const GroupNormShape& shape_;
  const GroupNormPlan& plan_;
  const int first_group_, groups_, width_;
  const int columns_, positions_;  // of vectors
};

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
    slab.for_each_vector(at, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels;
        const Real difference =
            widen(values.at[i]) - mean.load(slab.group(at.column * Slab::kChannels + c));
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
    slab.for_each_vector(at, [&](int offset, int slot) {
      const auto values = slab.read(0, x, offset, slot);
      auto grads = slab.read(1, grad, offset, slot);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int c = i % Slab::kChannels, group = slab.group(at.column * Slab::kChannels + c);
        const Real value = widen(values.at[i]);
        const Real s = slope(widen(grads.at[i]), of.a[c], value, of.b[c], shape.silu);
        grads.at[i] = narrow<Scalar>(of.a[c] * s + tilts.load(group) * value + shifts.load(group));
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
  if (job.grad_weight) {
    Real* to = job.grad_weight + example * job.weight_stride + channel;
    *to = job.accumulate ? *to + for_weight : for_weight;
  }
  if (job.grad_bias) {
    Real* to = job.grad_bias + example * job.bias_stride + channel;
    *to = job.accumulate ? *to + for_bias : for_bias;
  }
}

}  // namespace privimage::cuda
