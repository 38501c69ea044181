// One block's part of the fused normalisation: which values it has, how its threads share them, and
// how they are added up.
//
// A block has a slab: some whole groups of one row. Where values come 16 bytes at a time, the slab
// is brought into shared memory once, and each thread goes over its own vectors of it in every
// pass; else each pass reads global memory. A thread stays with one column, a vector's channels or
// one channel, and shares it with the threads of the other lanes, which have other pixels.
#pragma once

#include "kernels/block.h"
#include "kernels/group_norm_plan.h"

namespace privimage::cuda {

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

}  // namespace privimage::cuda
