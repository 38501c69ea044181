// The scaled sum of per-example weight gradients that are computed again, on the CPU, over a range
// of blocks of output channels: the caller brings the threads.
//
// What a tile of `example_tiles.h` holds is bitwise the same each time, so a norm that was measured
// is that of the very values that are added. They are added as they lie in the tile, and the
// integers are turned around once, after the last example.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/example_tiles.h"
#include "cpu/outer_sum.h"
#include "cpu/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/tap_order.h"

namespace privimage::cpu {

// Bytes that stay in the second-level cache: of the tensors of all examples, while tile after tile
// passes through them; where they are more, of the sums of some tiles that pass through one example
// after the other; and as `kCacheBytes`.
struct SumCache {
  int64_t all = 1 << 20;
  int64_t held = 1 << 19;
  int64_t example = kCacheBytes;
};

PRIVIMAGE_CLONES void add_integers(const int64_t* values, int64_t count, int64_t* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += values[i];
}

template <typename Scalar>
class RecomputedTiles {
 public:
  RecomputedTiles(const ExampleWeightGrad<Scalar>& job, const RecomputedSum& sums,
                  const TileSet<Scalar>& set, const SumCache& cache)
      : shape_(with_patches(job.geometry)),
        sums_(sums),
        set_(set),
        all_fit_(bytes(shape_, set.lanes) <= cache.all),
        tiles_(job, set, cache.example, all_fit_ ? shape_.examples : 1),
        together_(all_fit_ ? 1 : std::max(tiles_.panel(), cache.held / (tiles_.tile_sums() * 8))) {
    static thread_local Scratch<int64_t> scratch;
    const int64_t row = tiles_.taps() * tiles_.pitch();
    held_ = scratch.at_least(together_ * tiles_.tile_sums() + row);
    row_ = held_ + together_ * tiles_.tile_sums();
  }

  // The blocks begin … end - 1 of one group's.
  void run(int64_t group, int64_t begin, int64_t end) {
    const int64_t passes = tiles_.passes(), last = end * passes;
    if (sums_.bias_sum && begin == 0) bias(group);
    for (int64_t index = begin * passes; index < last; index += together_) {
      const int64_t count = std::min(together_, last - index);
      const Tile first = tiles_.tile(index);
      std::fill_n(held_, count * tiles_.tile_sums(), int64_t{0});
      for (int64_t example = 0; example < shape_.examples; ++example) {
        if (sums_.scales[example] != 0.0) add(example, group, first, count);
      }
      Tile now = first;
      for (int64_t i = 0; i < count; ++i, now = tiles_.after(now)) {
        hand_out(group, now, held_ + i * tiles_.tile_sums());
      }
    }
  }

 private:
  // Of the tensors of all examples, of one group.
  static int64_t bytes(const ConvGeometry& shape, int64_t lanes) {
    const int64_t padded = (shape.inputs + lanes - 1) / lanes * lanes;
    const int64_t x = shape.height.inputs * shape.width.inputs * padded;
    const int64_t grad = shape.height.outputs * shape.width.outputs * shape.outputs;
    return shape.examples * shape.draws * (x + grad) * int64_t{sizeof(Scalar)};
  }

  // Adds an example's tiles, `first` and those after it.
  void add(int64_t example, int64_t group, const Tile& first, int64_t count) {
    tiles_.load(example, group, all_fit_ ? example : 0);
    const int64_t row = tiles_.taps() * tiles_.pitch();
    Tile now = first;
    for (int64_t i = 0; i < count; i += tiles_.panel()) {
      const int64_t panel = std::min(tiles_.panel(), count - i);
      const Scalar* sums = tiles_.add_up(now, panel, [&](const Tile& next) {
        if (all_fit_ && sums_.accumulate) expect(example, group, next);
      });
      for (int64_t k = 0; k < panel; ++k, now = tiles_.after(now)) {
        set_.add_scaled(sums + k * tiles_.tile_sums(), now.outputs * row, sums_.scales[example],
                        held_ + (i + k) * tiles_.tile_sums());
      }
    }
  }

  // Asks for an example's share of the memory that the tile's sums go to, which is slow to come.
  void expect(int64_t example, int64_t group, const Tile& now) const {
    for (int64_t r = example; r < now.outputs; r += shape_.examples) {
      ask_for(sums_.weight_sum + tiles_.place(group, now, r), now.inputs * tiles_.taps());
    }
  }

  void hand_out(int64_t group, const Tile& now, const int64_t* held) {
    const int64_t taps = tiles_.taps(), pitch = tiles_.pitch();
    for (int64_t r = 0; r < now.outputs; ++r) {
      const int64_t* values = in_order(held + r * taps * pitch, now.inputs, taps, pitch, row_);
      int64_t* to = sums_.weight_sum + tiles_.place(group, now, r);
      if (sums_.accumulate) {
        add_integers(values, now.inputs * taps, to);
      } else {
        set_.stream(values, now.inputs * taps, to);
      }
    }
  }

  void bias(int64_t group) {
    int64_t* sum = sums_.bias_sum + group * shape_.outputs;
    if (!sums_.accumulate) std::fill_n(sum, shape_.outputs, int64_t{0});
    for (int64_t example = 0; example < shape_.examples; ++example) {
      if (sums_.scales[example] == 0.0) continue;
      tiles_.load(example, group, all_fit_ ? example : 0);
      set_.add_scaled(tiles_.bias(), shape_.outputs, sums_.scales[example], sum);
    }
  }

  const ConvGeometry shape_;
  const RecomputedSum& sums_;
  const TileSet<Scalar>& set_;
  const bool all_fit_;
  ExampleTiles<Scalar> tiles_;
  const int64_t together_;  // tiles that pass through an example at a time
  int64_t* held_;           // [together, kBlockRows, taps, pitch]
  int64_t* row_;            // [pitch, taps], of one output channel
};

// Adds up the blocks begin … end - 1 of one example's, of all examples. Two threads with different
// blocks write different sums. An example of scale 0 is passed over.
template <typename Scalar>
inline void recomputed_sum(const ExampleWeightGrad<Scalar>& job, const RecomputedSum& sums,
                           int64_t begin, int64_t end, const SumCache& cache = {}) {
  const TileSet<Scalar>& set = *tile_sets<Scalar>();
  if (is_outer_product(job.geometry)) {
    const int64_t last = std::min(end * kBlockRows, job.geometry.outputs);
    OuterSum<Scalar>(job, sums, set, begin * kBlockRows, last).run();
    return;
  }
  RecomputedTiles<Scalar> tiles(job, sums, set, cache);
  const int64_t blocks = blocks_a_group(job.geometry);
  for (int64_t next; begin < end; begin = next) {
    const int64_t group = begin / blocks, start = group * blocks;
    next = std::min(end, start + blocks);
    tiles.run(group, begin - start, next - start);
  }
  finish_streams();
}

}  // namespace privimage::cpu
