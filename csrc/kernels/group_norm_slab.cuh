// One block's part of the fused normalisation: which values it has, how its threads share them, and
// how they are added up.
//
// A block has a slab: some whole groups of one row. Where values come 16 bytes at a time, the slab
// is brought into shared memory once, and each thread goes over its own vectors of it in every
// pass; else each pass reads global memory. A thread stays with one column, a vector's channels or
// one channel, and shares it with the threads of the other lanes, which have other pixels.
//
// What a pass needs of its channels is in tables, made once a block by a thread a channel.
#pragma once

#include "kernels/block.h"
#include "kernels/group_norm_plan.h"
#include "kernels/vector.h"

namespace privimage::cuda {

// Of a channel: scale x + offset is the normalised value, weight and bias included; the group's
// mean and 1 / deviation; tilt x + shift is what backwards all gradients of the group lose.
enum Table { kScale, kOffset, kCentre, kRstd, kTilt, kShift };

// kValues of 1: one at a time, in whichever layout the shape says; kLast is not looked at.
template <typename Scalar, int kValues, bool kLast>
class GroupNormSlab {
 public:
  using Real = Wide<Scalar>;
  static constexpr int kChannels = kLast ? kValues : 1;  // of a vector
  using Values = Vector<Scalar, kValues>;
  using Reals = Vector<Real, kValues>;

  struct Column {
    int index;  // of this thread; from columns() on it has nothing to do
    int slot;   // of its first vector in shared memory, counted in vectors
  };

  PRIVIMAGE_DEVICE GroupNormSlab(const Block& block, const GroupNormShape& shape,
                                 const GroupNormPlan& plan)
      : block_(block),
        shape_(shape),
        plan_(plan),
        row_(static_cast<int>(block.x()) / plan.slabs),
        first_group_((static_cast<int>(block.x()) - row_ * plan.slabs) * plan.slab_groups),
        groups_(least(plan.slab_groups, static_cast<int>(shape.groups) - first_group_)),
        width_(static_cast<int>(shape.channels / shape.groups)),
        columns_(groups_ * width_ / kChannels),
        positions_(static_cast<int>(shape.pixels) / (kValues / kChannels)),
        lanes_(plan.threads / plan.across),
        lane_(last() ? block.thread() / plan.across : block.thread() % lanes_),
        column_(last() ? block.thread() % plan.across : block.thread() / lanes_) {}

  PRIVIMAGE_DEVICE int64_t row() const { return row_; }
  PRIVIMAGE_DEVICE int64_t row_start() const { return row() * shape_.channels * shape_.pixels; }
  PRIVIMAGE_DEVICE int channels() const { return groups_ * width_; }
  // Of the row, from a channel of the slab.
  PRIVIMAGE_DEVICE int channel(int of_slab) const { return first_group_ * width_ + of_slab; }
  PRIVIMAGE_DEVICE int group(int channel) const { return channel / width_; }
  // Where the moments of a group are.
  PRIVIMAGE_DEVICE int64_t moments(int group) const {
    return row() * shape_.groups + first_group_ + group;
  }
  // An image without pixels has moments, too.
  PRIVIMAGE_DEVICE double count() const {
    const int64_t values = width_ * shape_.pixels;
    return static_cast<double>(values > 0 ? values : 1);
  }

  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_column(Body body) const {
    int slot = block_.thread();
    for (int first = 0; first < columns_; first += plan_.across) {
      body(Column{first + column_, slot});
      slot += plan_.steps * plan_.threads;
    }
  }

  // body(where the vector starts in the row, its slot).
  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_vector(const Column& column, Body body) const {
    if (column.index >= columns_) return;
    const int along = last() ? static_cast<int>(shape_.channels) : kValues;
    const int start = channel(column.index * kChannels);
    int offset = (last() ? start : start * static_cast<int>(shape_.pixels)) + lane_ * along;
    int slot = column.slot;
    for (int position = lane_; position < positions_; position += lanes_) {
      body(offset, slot);
      offset += lanes_ * along;
      slot += plan_.threads;
    }
  }

  // body(channel of the slab): a thread each.
  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_channel(Body body) const {
    for (int c = block_.thread(); c < channels(); c += plan_.threads) body(c);
  }

  // body(group of the slab, its first channel): a thread each.
  template <typename Body>
  PRIVIMAGE_DEVICE void for_each_group(Body body) const {
    for (int g = block_.thread(); g < groups_; g += plan_.threads) body(g, g * width_);
  }

  // Sends for this thread's vectors of some arrays, to be in shared memory after the wait.
  template <typename... Rows>
  PRIVIMAGE_DEVICE void bring([[maybe_unused]] const Rows*... rows) const {
    if constexpr (kValues > 1) {
      for_each_column([&](const Column& column) {
        for_each_vector(column, [&](int offset, int slot) {
          int array = 0;
          (block_.copy16(kept(array++), slot * kValues, rows + offset, 16), ...);
        });
      });
      block_.commit();
    }
  }
  // Nobody reads another thread's vectors, so a thread waits for its own alone.
  PRIVIMAGE_DEVICE void wait_for_arrays() const {
    if constexpr (kValues > 1) block_.template wait<0>();
  }
  PRIVIMAGE_DEVICE Reals read(int array, const Scalar* row, int offset, int slot) const {
    if constexpr (kValues > 1) {
      return widen_all(kept(array).template load_vector<kValues>(slot * kValues));
    } else {
      return {widen(block_.load(row + offset))};
    }
  }
  PRIVIMAGE_DEVICE void write(Scalar* to, const Reals& reals) const {
    block_.store(reinterpret_cast<Values*>(to), narrow_all<Scalar>(reals));
  }

  // Adds up what this thread's sums [kSums, kChannels] and those of its warp's other lanes are, in
  // a fixed order. All threads call it; those without a column bring nothing.
  template <int kSums>
  PRIVIMAGE_DEVICE void add_lanes(const Column& column, Real (&sums)[kSums][kChannels]) const {
    // Lanes of a column are that far from each other, and end there.
    const int from = last() ? plan_.across : 1, end = last() ? 32 : least(lanes_, 32);
    for (int mask = from; mask < end; mask *= 2) {
#pragma unroll
      for (int i = 0; i < kSums * kChannels; ++i) {
        Real& sum = sums[i / kChannels][i % kChannels];
        sum += block_.shuffle_xor(sum, mask);
      }
    }
    const bool is_first = (block_.lane() & (end - 1)) < from;
    if (!is_first || column.index >= columns_) return;
    const int part =
        last() ? block_.thread() / (plan_.across > 32 ? plan_.across : 32) : lane_ / 32;
#pragma unroll
    for (int i = 0; i < kSums * kChannels; ++i) {
      const int c = column.index * kChannels + i % kChannels;
      partials(kSums).store((i / kChannels * parts() + part) * channels() + place(c),
                            sums[i / kChannels][i % kChannels]);
    }
  }

  // Adds up the parts of every channel, for totals(…); the whole block meets before and after.
  template <int kSums>
  PRIVIMAGE_DEVICE void add_parts() const {
    block_.barrier();
    for_each_channel([&](int c) {
#pragma unroll
      for (int sum = 0; sum < kSums; ++sum) {
        Real total = 0;
        for (int part = 0; part < parts(); ++part) {
          total += partials(kSums).load((sum * parts() + part) * channels() + place(c));
        }
        totals(kSums).store(sum * channels() + c, total);
      }
    });
    block_.barrier();
  }

  // [sums, channels]
  PRIVIMAGE_DEVICE Shared<Real> totals(int sums) const {
    return block_.template shared<Real>(static_cast<int>(plan_.totals_at), sums * channels());
  }
  // The sum over a channel's group of term(channel of the slab).
  template <typename Term>
  PRIVIMAGE_DEVICE double group_sum(int of_slab, Term term) const {
    double sum = 0.0;
    const int first = group(of_slab) * width_;
    for (int c = first; c < first + width_; ++c) sum += term(c);
    return sum;
  }

  // What a table says of a channel of the slab.
  PRIVIMAGE_DEVICE Real get(Table which, int channel) const {
    return table(which).load(place(channel));
  }
  PRIVIMAGE_DEVICE void set(Table which, int channel, Real value) const {
    table(which).store(place(channel), value);
  }
  // The same of the channels of a thread's vectors, in registers before a loop begins.
  PRIVIMAGE_DEVICE Vector<Real, kChannels> of_channels(Table which, const Column& column) const {
    Vector<Real, kChannels> values = {};
    if (column.index >= columns_) return values;
#pragma unroll
    for (int i = 0; i < kChannels; i += kAtOnce) {
      const auto some =
          table(which).template load_vector<kAtOnce>(place(column.index * kChannels + i));
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) values.at[i + j] = some.at[j];
    }
    return values;
  }

 private:
  static constexpr int kAtOnce = kChannels % 4 == 0 && sizeof(Real) == 4 ? 4 : 1;
  // Where a channel is in a table or among partials: what the lanes of a warp load together of
  // their columns lies side by side, in banks of its own.
  PRIVIMAGE_DEVICE int place(int channel) const {
    const int column = channel / kChannels, of_column = channel % kChannels;
    return (of_column / kAtOnce * columns_ + column) * kAtOnce + of_column % kAtOnce;
  }
  PRIVIMAGE_DEVICE Shared<Real> table(Table which) const {
    const int at =
        static_cast<int>(plan_.tables_at) + which * channels() * static_cast<int>(sizeof(Real));
    return block_.template shared<Real>(at, channels());
  }
  PRIVIMAGE_DEVICE static int least(int a, int b) { return a < b ? a : b; }
  PRIVIMAGE_DEVICE bool last() const { return kValues > 1 ? kLast : shape_.channels_last; }
  PRIVIMAGE_DEVICE int parts() const {
    return parts_of_a_column(plan_.threads, plan_.across, last());
  }
  PRIVIMAGE_DEVICE Shared<Real> partials(int sums) const {
    return block_.template shared<Real>(static_cast<int>(plan_.partials_at),
                                        sums * parts() * channels());
  }
  PRIVIMAGE_DEVICE Shared<Scalar> kept(int array) const {
    const int bytes = static_cast<int>(plan_.array_bytes);
    return block_.template shared<Scalar>(array * bytes, bytes / static_cast<int>(sizeof(Scalar)));
  }

  const Block block_;
  const GroupNormShape& shape_;
  const GroupNormPlan& plan_;
  const int row_, first_group_, groups_, width_;
  const int columns_, positions_;  // of vectors
  const int lanes_;                // threads of a column
  const int lane_;                 // of this thread among them
  const int column_;               // of this thread among those side by side
};

}  // namespace privimage::cuda
