// The per-example weight gradient on the CPU, over a range of blocks of output channels: the caller
// brings the threads.
//
// An example's gradient is a matrix product for each tap: output channels x (draws, pixels) times
// (draws, pixels) x input channels. Tiles of it are summed in registers over a band of pixels,
// which all taps read from the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/example_weight_grad_isa.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// Output channels that are worked on together, of one example and group.
constexpr int64_t kBlockRows = 8;

// Pixels of a band: x stays in the first-level cache, and adding registers to the sums costs little
// beside so many products. 64 to 128 are equally fast.
constexpr int64_t kBandPixels = 96;

// Bytes of an example's tensors that stay in the second-level cache while all its output channels
// are worked on, beside as many bytes of their sums.
constexpr int64_t kCacheBytes = 3 << 18;

inline int64_t blocks_a_group(const ConvGeometry& shape) {
  return (shape.outputs + kBlockRows - 1) / kBlockRows;
}

// Blocks of output channels to work through.
inline int64_t example_weight_grad_blocks(const ConvGeometry& shape) {
  return shape.examples * shape.groups * blocks_a_group(shape);
}

// from [taps, pitch] -> to [inputs, taps]; kTaps unrolls the loop, 0 does not. Not inlined, for the
// sake of its registers.
template <int kTaps, typename Scalar>
__attribute__((noinline)) void turn(const Scalar* __restrict__ from, int64_t inputs, int64_t taps,
                                    int64_t pitch, Scalar* __restrict__ to) {
  if (kTaps > 0) taps = kTaps;
  for (int64_t c = 0; c < inputs; ++c) {
    for (int64_t t = 0; t < taps; ++t) to[c * taps + t] = from[t * pitch + c];
  }
}

// Where the gradients of examples go: into the rows that the job names.
template <typename Scalar>
class WriteRows {
 public:
  static constexpr bool kWantsRows = true;

  explicit WriteRows(const ExampleWeightGrad<Scalar>& job) : job_(job) {}

  // The weights that follow, in the order in which they were computed and with zeros between them.
  void tile(const Scalar*, int64_t) const {}

  // Called long before `weight`: asks for its memory, which is slow to come.
  void expect(int64_t example, int64_t place, int64_t count) const {
    constexpr int64_t kLine = 64 / sizeof(Scalar);
    const Scalar* to = job_.weight + example * job_.weight_stride + place;
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(to + i, 1);
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
      : job_(job),
        sink_(sink),
        shape_(job.geometry),
        grad_strides_(job.grad_strides),
        tiles_(tiles),
        padded_((shape_.inputs + tiles.lanes - 1) / tiles.lanes * tiles.lanes),
        pitch_(2 * tiles.lanes),
        taps_(shape_.height.taps * shape_.width.taps),
        passes_((padded_ + pitch_ - 1) / pitch_),
        tile_sums_(kBlockRows * taps_ * pitch_),
        packs_(job.x_strides.channel != 1 || padded_ != shape_.inputs) {
    split(cache_bytes);
    const int64_t row = taps_ * pitch_, sums = panel_ * tile_sums_;
    const int64_t image = shape_.height.inputs * shape_.width.inputs * padded_;
    const int64_t packed = packs_ ? shape_.draws * image : 0;
    static thread_local Scratch<Scalar> scratch;
    sums_ = scratch.at_least(sums + row + packed + shape_.outputs);
    row_ = sums_ + sums;
    packed_ = row_ + row;
    bias_ = packed_ + packed;
  }

  // The blocks begin … end - 1 of `example_weight_grad_blocks`; calls finished(i) after the last
  // value of block i was handed out.
  template <typename Finished>
  void run(int64_t begin, int64_t end, Finished finished) {
    const int64_t blocks = blocks_a_group(shape_);
    for (int64_t next; begin < end; begin = next) {
      const int64_t owner = begin / blocks, start = owner * blocks;
      next = std::min(end, start + blocks);
      const int64_t example = owner / shape_.groups, group = owner % shape_.groups;
      if (owner != loaded_) load(example, group);
      loaded_ = owner;
      if (job_.bias && begin == start) bias(example, group);
      const int64_t last = (next - start) * passes_;
      for (int64_t tile = (begin - start) * passes_; tile < last; tile += panel_) {
        const int64_t count = std::min(panel_, last - tile);
        add_up(example, group, tile, count);
        for (int64_t i = 0; i < count; ++i) {
          hand_out(example, group, tile + i, sums_ + i * tile_sums_);
          if ((tile + i + 1) % passes_ == 0) finished(start + (tile + i) / passes_);
        }
      }
    }
  }

  void run(int64_t begin, int64_t end) {
    run(begin, end, [](int64_t) {});
  }

 private:
  // Part of an example: `rows` rows of the output from `row` on, of `draws` draws from `draw` on.
  struct Part {
    int64_t draw, draws, row, rows;
  };

  // What is worked on together: bands of pixels for the first-level cache; and where an example is
  // larger than the second-level cache, chunks of bands, each for a panel of many tiles.
  void split(int64_t cache_bytes) {
    const int64_t width = std::max<int64_t>(shape_.width.outputs, 1);
    const int64_t height = std::max<int64_t>(shape_.height.outputs, 1);
    const auto of_pixels = [&](int64_t pixels) {
      const int64_t rows = std::clamp<int64_t>(pixels / width, 1, height);
      return Part{0, std::max<int64_t>(pixels / (width * height), 1), 0, rows};
    };
    band_ = of_pixels(kBandPixels);
    const int64_t strides = shape_.height.stride * shape_.width.stride;
    const int64_t pixel = (padded_ * strides + shape_.outputs) * int64_t{sizeof(Scalar)};
    chunk_ = of_pixels(std::max(cache_bytes / pixel, kBandPixels));
    chunk_.draws = chunk_.draws / band_.draws * band_.draws;
    chunk_.rows = chunk_.rows < height ? chunk_.rows / band_.rows * band_.rows : height;
    const bool fits = chunk_.rows == height && chunk_.draws >= shape_.draws;
    const int64_t held = cache_bytes / (tile_sums_ * int64_t{sizeof(Scalar)});
    panel_ = fits ? 1 : std::clamp<int64_t>(held, 1, blocks_a_group(shape_) * passes_);
  }

  // Points x_ to an example's input of one group, channels last and in whole vectors; makes a copy
  // where it is not so already.
  void load(int64_t example, int64_t group) {
    const ImageStrides& from = job_.x_strides;
    const Scalar* x =
        job_.x + example * shape_.draws * from.row + group * shape_.inputs * from.channel;
    x_ = packs_ ? packed_ : x;
    const int64_t row = shape_.width.inputs * padded_;
    x_strides_ = packs_ ? ImageStrides{shape_.height.inputs * row, 1, row, padded_} : from;
    if (packs_) pack(x);
  }

  void pack(const Scalar* x) {
    const ImageStrides& from = job_.x_strides;
    Scalar* to = packed_;
    for (int64_t draw = 0; draw < shape_.draws; ++draw) {
      for (int64_t h = 0; h < shape_.height.inputs; ++h) {
        const Scalar* pixel = x + draw * from.row + h * from.height;
        for (int64_t w = 0; w < shape_.width.inputs; ++w, to += padded_, pixel += from.width) {
          for (int64_t c = 0; c < shape_.inputs; ++c) to[c] = pixel[c * from.channel];
          std::fill(to + shape_.inputs, to + padded_, Scalar(0));
        }
      }
    }
  }

  // A tile's first output channel in its group and how many it has; likewise input channels.
  struct Tile {
    int64_t output, outputs, input, inputs;
  };

  Tile tile(int64_t index) const {
    const int64_t output = index / passes_ * kBlockRows, input = index % passes_ * pitch_;
    return {output, std::min(kBlockRows, shape_.outputs - output), input,
            std::min(pitch_, shape_.inputs - input)};
  }

  // Sums up `count` tiles of an example's group, `first` and those that follow.
  void add_up(int64_t example, int64_t group, int64_t first, int64_t count) {
    std::fill_n(sums_, count * tile_sums_, Scalar(0));
    const Part all{0, shape_.draws, 0, shape_.height.outputs};
    const Scalar* grad = job_.grad + example * shape_.draws * grad_strides_.row +
                         group * shape_.outputs * grad_strides_.channel;
    for_each(chunk_, all, [&](const Part& chunk) {
      for (int64_t i = 0; i < count; ++i) {
        const Tile now = tile(first + i);
        for (int64_t r = 0; r < now.outputs; ++r) {
          sink_.expect(example, place(group, now, r), now.inputs * taps_);
        }
        for_each(band_, chunk, [&](const Part& band) {
          add_band(band, now, grad + now.output * grad_strides_.channel, sums_ + i * tile_sums_);
        });
      }
    });
  }

  void hand_out(int64_t example, int64_t group, int64_t index, const Scalar* sums) {
    const Tile now = tile(index);
    sink_.tile(sums, now.outputs * taps_ * pitch_);
    if constexpr (Sink::kWantsRows) {
      for (int64_t r = 0; r < now.outputs; ++r) {
        const Scalar* values = in_order(sums + r * taps_ * pitch_, now.inputs);
        sink_.weight(example, place(group, now, r), values, now.inputs * taps_);
      }
    }
  }

  // Where the weights of a tile's output channel `r` begin in an example's row.
  int64_t place(int64_t group, const Tile& now, int64_t r) const {
    return ((group * shape_.outputs + now.output + r) * shape_.inputs + now.input) * taps_;
  }

  // Calls body(part) for parts of `whole` as large as `size` or smaller, in order.
  template <typename Body>
  static void for_each(const Part& size, const Part& whole, Body body) {
    const int64_t last_draw = whole.draw + whole.draws, last_row = whole.row + whole.rows;
    for (int64_t draw = whole.draw; draw < last_draw; draw += size.draws) {
      for (int64_t row = whole.row; row < last_row; row += size.rows) {
        body(Part{draw, std::min(size.draws, last_draw - draw), row,
                  std::min(size.rows, last_row - row)});
      }
    }
  }

  // All taps of one band, for one tile.
  void add_band(const Part& part, const Tile& now, const Scalar* grad, Scalar* sums) {
    const ImageStrides &xs = x_strides_, &gs = grad_strides_;
    const bool two = now.input + tiles_.lanes < padded_;
    const Tiles<Scalar> tiles = two ? tiles_.two_vectors : tiles_.one_vector;
    TapLoop loop{};
    loop.draws = part.draws;
    loop.x_draw = xs.row;
    loop.x_row = xs.height * shape_.height.stride;
    loop.x_column = xs.width * shape_.width.stride;
    loop.grad_draw = gs.row;
    loop.grad_row = gs.height;
    loop.grad_column = gs.width;
    loop.grad_channel = gs.channel;
    for (int64_t h = 0; h < shape_.height.taps; ++h) {
      const Range all = inside(shape_.height, h);
      const Range rows{std::max(all.begin, part.row), std::min(all.end, part.row + part.rows)};
      loop.rows = rows.end - rows.begin;
      const int64_t top = input_position(shape_.height, rows.begin, h);
      for (int64_t w = 0; w < shape_.width.taps && loop.rows > 0; ++w) {
        const Range columns = inside(shape_.width, w);
        loop.columns = columns.end - columns.begin;
        if (loop.columns == 0) continue;
        const int64_t left = input_position(shape_.width, columns.begin, w);
        tiles(loop, x_ + part.draw * xs.row + top * xs.height + left * xs.width + now.input,
              grad + part.draw * gs.row + rows.begin * gs.height + columns.begin * gs.width,
              sums + (h * shape_.width.taps + w) * pitch_, taps_ * pitch_, now.outputs);
      }
    }
  }

  // sums [taps, pitch] -> [inputs, taps], turned around in the first-level cache, since single
  // values going to memory fill the store buffer.
  const Scalar* in_order(const Scalar* sums, int64_t inputs) const {
    if (taps_ == 1) return sums;
    (taps_ == 9 ? turn<9, Scalar> : turn<0, Scalar>)(sums, inputs, taps_, pitch_, row_);
    return row_;
  }

  // The bias of a group: the sums of grad, vectors of channels where they lie side by side.
  void bias(int64_t example, int64_t group) {
    const ImageStrides& gs = grad_strides_;
    const int64_t first = group * shape_.outputs;
    const Scalar* grad = job_.grad + example * shape_.draws * gs.row + first * gs.channel;
    std::fill_n(bias_, shape_.outputs, Scalar(0));
    for_each(band_, {0, shape_.draws, 0, shape_.height.outputs}, [&](const Part& band) {
      add_to_bias(bias_, grad + band.draw * gs.row + band.row * gs.height, band.draws, band.rows);
    });
    sink_.bias(example, first, bias_, shape_.outputs);
  }

  void add_to_bias(Scalar* bias, const Scalar* grad, int64_t draws, int64_t rows) const {
    const ImageStrides& gs = grad_strides_;
    const Scalar one = 1;
    const TapLoop loop{draws, rows, shape_.width.outputs, gs.row, gs.height, gs.width, 0, 0, 0, 0};
    int64_t c = 0;
    for (; gs.channel == 1 && c + tiles_.lanes <= shape_.outputs; c += tiles_.lanes) {
      tiles_.one_vector(loop, grad + c, &one, bias + c, 0, 1);
    }
    for (; c < shape_.outputs; ++c) {
      Scalar sum = 0;
      for (int64_t draw = 0; draw < draws; ++draw) {
        for (int64_t row = 0; row < rows; ++row) {
          const Scalar* pixel = grad + c * gs.channel + draw * gs.row + row * gs.height;
          for (int64_t w = 0; w < loop.columns; ++w) sum += pixel[w * gs.width];
        }
      }
      bias[c] += sum;
    }
  }

  const ExampleWeightGrad<Scalar>& job_;
  Sink& sink_;
  const ConvGeometry& shape_;
  const ImageStrides& grad_strides_;
  const TileSet<Scalar>& tiles_;
  const int64_t padded_;  // input channels in whole vectors
  const int64_t pitch_;   // input channels that are summed at a time: two vectors
  const int64_t taps_;
  const int64_t passes_;     // tiles of a block: over its input channels
  const int64_t tile_sums_;  // values of a tile's sums
  const bool packs_;
  Part band_{}, chunk_{};
  int64_t panel_ = 1;  // tiles that are worked on together
  Scalar* sums_;       // [panel, kBlockRows, taps, pitch]
  Scalar* row_;        // [pitch, taps], of one output channel
  Scalar* packed_;     // [draws, height, width, padded]
  Scalar* bias_;       // [outputs], of one group
  const Scalar* x_ = nullptr;
  int64_t loaded_ = -1;  // the example and group of x_
  ImageStrides x_strides_{};
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
