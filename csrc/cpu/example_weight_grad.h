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
  explicit WriteRows(const ExampleWeightGrad<Scalar>& job) : job_(job) {}

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
                          Sink& sink)
      : job_(job),
        sink_(sink),
        shape_(job.geometry),
        grad_strides_(job.grad_strides),
        tiles_(tiles),
        padded_((shape_.inputs + tiles.lanes - 1) / tiles.lanes * tiles.lanes),
        pitch_(2 * tiles.lanes),
        taps_(shape_.height.taps * shape_.width.taps),
        packs_(job.x_strides.channel != 1 || padded_ != shape_.inputs) {
    const int64_t width = std::max<int64_t>(shape_.width.outputs, 1);
    const int64_t height = std::max<int64_t>(shape_.height.outputs, 1);
    band_rows_ = std::clamp<int64_t>(kBandPixels / width, 1, height);
    band_draws_ = std::max<int64_t>(kBandPixels / (width * height), 1);
    const int64_t row = taps_ * pitch_, sums = kBlockRows * row;
    const int64_t image = shape_.height.inputs * shape_.width.inputs * padded_;
    const int64_t packed = packs_ ? shape_.draws * image : 0;
    static thread_local Scratch<Scalar> scratch;
    sums_ = scratch.at_least(sums + row + packed + shape_.outputs);
    row_ = sums_ + sums;
    packed_ = row_ + row;
    bias_ = packed_ + packed;
  }

  // The block `index` of `example_weight_grad_blocks`.
  void run(int64_t index) {
    const int64_t blocks = blocks_a_group(shape_);
    const int64_t example = index / blocks / shape_.groups, group = index / blocks % shape_.groups;
    if (index / blocks != loaded_) load(example, group);
    loaded_ = index / blocks;
    if (job_.bias && index % blocks == 0) bias(example, group);
    block(example, group, index % blocks * kBlockRows);
  }

 private:
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

  // The weights of the output channels first … first + kBlockRows - 1 of a group.
  void block(int64_t example, int64_t group, int64_t first) {
    const int64_t count = std::min(kBlockRows, shape_.outputs - first);
    const int64_t channel = group * shape_.outputs + first;
    const Scalar* grad =
        job_.grad + example * shape_.draws * grad_strides_.row + channel * grad_strides_.channel;
    for (int64_t c = 0; c < padded_; c += pitch_) {
      const int64_t inputs = std::min(pitch_, shape_.inputs - c);
      const int64_t place = (channel * shape_.inputs + c) * taps_, next = shape_.inputs * taps_;
      for (int64_t r = 0; r < count; ++r) sink_.expect(example, place + r * next, inputs * taps_);
      std::fill_n(sums_, count * taps_ * pitch_, Scalar(0));
      for_each_band([&](int64_t draw, int64_t row) { band(draw, row, c, grad, count); });
      for (int64_t r = 0; r < count; ++r) {
        const Scalar* values = in_order(sums_ + r * taps_ * pitch_, inputs);
        sink_.weight(example, place + r * next, values, inputs * taps_);
      }
    }
  }

  template <typename Body>
  void for_each_band(Body body) const {
    for (int64_t draw = 0; draw < shape_.draws; draw += band_draws_) {
      for (int64_t row = 0; row < shape_.height.outputs; row += band_rows_) body(draw, row);
    }
  }

  // All taps of one band, for the input channels of up to two vectors from `c` on.
  void band(int64_t draw, int64_t row, int64_t c, const Scalar* grad, int64_t count) {
    const ImageStrides &xs = x_strides_, &gs = grad_strides_;
    const bool two = c + tiles_.lanes < padded_;
    const Tiles<Scalar> tiles = two ? tiles_.two_vectors : tiles_.one_vector;
    TapLoop loop{};
    loop.draws = std::min(band_draws_, shape_.draws - draw);
    loop.x_draw = xs.row;
    loop.x_row = xs.height * shape_.height.stride;
    loop.x_column = xs.width * shape_.width.stride;
    loop.grad_draw = gs.row;
    loop.grad_row = gs.height;
    loop.grad_column = gs.width;
    loop.grad_channel = gs.channel;
    for (int64_t h = 0; h < shape_.height.taps; ++h) {
      const Range all = inside(shape_.height, h);
      const Range rows{std::max(all.begin, row), std::min(all.end, row + band_rows_)};
      loop.rows = rows.end - rows.begin;
      const int64_t top = input_position(shape_.height, rows.begin, h);
      for (int64_t w = 0; w < shape_.width.taps && loop.rows > 0; ++w) {
        const Range columns = inside(shape_.width, w);
        loop.columns = columns.end - columns.begin;
        if (loop.columns == 0) continue;
        const int64_t left = input_position(shape_.width, columns.begin, w);
        tiles(loop, x_ + draw * xs.row + top * xs.height + left * xs.width + c,
              grad + draw * gs.row + rows.begin * gs.height + columns.begin * gs.width,
              sums_ + (h * shape_.width.taps + w) * pitch_, taps_ * pitch_, count);
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
    for_each_band([&](int64_t draw, int64_t row) {
      add_to_bias(bias_, grad + draw * gs.row + row * gs.height,
                  std::min(band_draws_, shape_.draws - draw),
                  std::min(band_rows_, shape_.height.outputs - row));
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
  const bool packs_;
  int64_t band_draws_, band_rows_;
  Scalar* sums_;    // [kBlockRows, taps, pitch]
  Scalar* row_;     // [pitch, taps], of one output channel
  Scalar* packed_;  // [draws, height, width, padded]
  Scalar* bias_;    // [outputs], of one group
  const Scalar* x_ = nullptr;
  int64_t loaded_ = -1;  // the example and group of x_
  ImageStrides x_strides_{};
};

// The blocks begin … end - 1 of `example_weight_grad_blocks`.
template <typename Scalar>
inline void example_weight_grad(const ExampleWeightGrad<Scalar>& job, const TileSet<Scalar>& tiles,
                                int64_t begin, int64_t end) {
  WriteRows<Scalar> sink(job);
  ExampleWeightGradBlocks<Scalar, WriteRows<Scalar>> blocks(job, tiles, sink);
  for (int64_t i = begin; i < end; ++i) blocks.run(i);
}

template <typename Scalar>
inline void example_weight_grad(const ExampleWeightGrad<Scalar>& job, int64_t begin, int64_t end) {
  example_weight_grad(job, *tile_sets<Scalar>(), begin, end);
}

}  // namespace privimage::cpu
