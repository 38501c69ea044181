// The per-example weight gradient on the CPU, over a range of blocks of output channels: the caller
// brings the threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/example_tiles.h"
#include "cpu/prefetch.h"
#include "cpu/tap_order.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// Blocks of output channels to work through.
inline int64_t example_weight_grad_blocks(const ConvGeometry& shape) {
  return shape.examples * shape.groups * blocks_a_group(shape);
}

// Where the gradients of examples go: into the rows that the job names.
template <typename Scalar>
class WriteRows {
 public:
  static constexpr bool kWantsRows = true;

  explicit WriteRows(const ExampleWeightGrad<Scalar>& job) : job_(job) {}

  // The weights that follow, in the order in which they were computed and with zeros between them.
  void tile(const Scalar*, int64_t) const {}

  // Called long before `weight`.
  void expect(int64_t example, int64_t place, int64_t count) const {
    ask_for(job_.weight + example * job_.weight_stride + place, count);
  }

  // The values from `place` on, of an example's [groups * outputs, inputs, taps, taps].
  void weight(int64_t example, int64_t place, const Scalar* values, int64_t count) {
    put(job_.weight + example * job_.weight_stride + place, values, count);
  }

  // The values from `place` on, of an example's [groups * outputs].
  void bias(int64_t example, int64_t place, const Scalar* values, int64_t count) {
    put(job_.bias + example * job_.bias_stride + place, values, count);
  }

 private:
  void put(Scalar* to, const Scalar* values, int64_t count) const {
    if (job_.accumulate) {
      for (int64_t i = 0; i < count; ++i) to[i] += values[i];
    } else {
      std::copy_n(values, count, to);
    }
  }

  const ExampleWeightGrad<Scalar>& job_;
};

// Works on one block after the other and hands its values to `sink`, which is as `WriteRows`.
template <typename Scalar, typename Sink>
class ExampleWeightGradBlocks {
 public:
  ExampleWeightGradBlocks(const ExampleWeightGrad<Scalar>& job, const TileSet<Scalar>& tiles,
                          Sink& sink, int64_t cache_bytes = kCacheBytes)
      : job_(job), sink_(sink), tiles_(job, tiles, cache_bytes) {
    static thread_local Scratch<Scalar> scratch;
    row_ = scratch.at_least(tiles_.taps() * tiles_.pitch());
  }

  // The blocks begin … end - 1 of `example_weight_grad_blocks`; calls finished(i) after the last
  // value of block i was handed out.
  template <typename Finished>
  void run(int64_t begin, int64_t end, Finished finished) {
    const ConvGeometry& shape = job_.geometry;
    const int64_t blocks = blocks_a_group(shape), passes = tiles_.passes();
    for (int64_t next; begin < end; begin = next) {
      const int64_t owner = begin / blocks, start = owner * blocks;
      next = std::min(end, start + blocks);
      const int64_t example = owner / shape.groups, group = owner % shape.groups;
      tiles_.load(example, group);
      if (job_.bias && begin == start) {
        sink_.bias(example, group * shape.outputs, tiles_.bias(), shape.outputs);
      }
      const int64_t last = (next - start) * passes;
      for (int64_t tile = (begin - start) * passes; tile < last; tile += tiles_.panel()) {
        const int64_t count = std::min(tiles_.panel(), last - tile);
        const Scalar* sums = tiles_.add_up(tiles_.tile(tile), count, [&](const Tile& now) {
          for (int64_t r = 0; r < now.outputs; ++r) {
            sink_.expect(example, tiles_.place(group, now, r), now.inputs * tiles_.taps());
          }
        });
        for (int64_t i = 0; i < count; ++i, sums += tiles_.tile_sums()) {
          hand_out(example, group, tiles_.tile(tile + i), sums);
          if ((tile + i + 1) % passes == 0) finished(start + (tile + i) / passes);
        }
      }
    }
  }

  void run(int64_t begin, int64_t end) {
    run(begin, end, [](int64_t) {});
  }

 private:
  void hand_out(int64_t example, int64_t group, const Tile& now, const Scalar* sums) {
    const int64_t row = tiles_.taps() * tiles_.pitch();
    sink_.tile(sums, now.outputs * row);
    if constexpr (Sink::kWantsRows) {
      for (int64_t r = 0; r < now.outputs; ++r) {
        const Scalar* values =
            in_order(sums + r * row, now.inputs, tiles_.taps(), tiles_.pitch(), row_);
        sink_.weight(example, tiles_.place(group, now, r), values, now.inputs * tiles_.taps());
      }
    }
  }

  const ExampleWeightGrad<Scalar>& job_;
  Sink& sink_;
  ExampleTiles<Scalar> tiles_;
  Scalar* row_;  // [pitch, taps], of one output channel
};

// The blocks begin … end - 1 of `example_weight_grad_blocks`.
template <typename Scalar>
inline void example_weight_grad(const ExampleWeightGrad<Scalar>& job, const TileSet<Scalar>& tiles,
                                int64_t begin, int64_t end, int64_t cache_bytes = kCacheBytes) {
  WriteRows<Scalar> sink(job);
  ExampleWeightGradBlocks<Scalar, WriteRows<Scalar>> blocks(job, tiles, sink, cache_bytes);
  blocks.run(begin, end);
}

template <typename Scalar>
inline void example_weight_grad(const ExampleWeightGrad<Scalar>& job, int64_t begin, int64_t end) {
  example_weight_grad(job, *tile_sets<Scalar>(), begin, end);
}

}  // namespace privimage::cpu
