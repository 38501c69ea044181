// The sums of tiles of an example's weight gradient on the CPU: some output channels x some input
// channels x all taps.
//
// An example's gradient is a matrix product for each tap: output channels x (draws, pixels) times
// (draws, pixels) x input channels. Tiles of it are summed in registers over a band of pixels,
// which all taps read from the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/example_parts.h"
#include "cpu/example_weight_grad_isa.h"
#include "cpu/packed_images.h"
#include "cpu/patches.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// Output channels of a tile, and of how many its gradients are packed: a cache line of floats.
constexpr int64_t kBlockRows = 8;
constexpr int64_t kPackedRows = 2 * kBlockRows;

// Blocks of output channels, tiles of the same output channels.
inline int64_t blocks_a_group(const ConvGeometry& shape) {
  return (shape.outputs + kBlockRows - 1) / kBlockRows;
}

// A tile's first output channel in its group and how many it has; likewise input channels.
struct Tile {
  int64_t output, outputs, input, inputs;
};

// Sums up one group's tiles, of one example after the other or of all in any order.
template <typename Scalar>
class ExampleTiles {
 public:
  // `slots`: how many examples are loaded at the same time.
  ExampleTiles(const ExampleWeightGrad<Scalar>& job, const TileSet<Scalar>& tiles,
               int64_t cache_bytes, int64_t slots = 1)
      : job_(job),
        shape_(with_patches(job.geometry)),
        tiles_(tiles),
        padded_((shape_.inputs + tiles.lanes - 1) / tiles.lanes * tiles.lanes),
        pitch_(2 * tiles.lanes),
        taps_(shape_.height.taps * shape_.width.taps),
        passes_((padded_ + pitch_ - 1) / pitch_),
        tile_sums_(kBlockRows * taps_ * pitch_) {
    const int64_t strides = shape_.height.stride * shape_.width.stride;
    const int64_t pixel = (padded_ * strides + shape_.outputs) * int64_t{sizeof(Scalar)};
    cut_ = cut_for_caches(shape_, pixel, cache_bytes);
    if (!cut_.fits) {
      const int64_t held = cache_bytes / (tile_sums_ * int64_t{sizeof(Scalar)});
      panel_ = std::clamp<int64_t>(held, 1, blocks_a_group(shape_) * passes_);
    }
    packs_grad_ = cut_.fits;
    makes_patches_ = shape_.inputs != job.geometry.inputs;
    packs_x_ =
        packs_grad_ || makes_patches_ || job.x_strides.channel != 1 || padded_ != shape_.inputs;
    const ConvAxis &height = shape_.height, &width = shape_.width;
    x_pixels_ = shape_.draws * height.inputs * width.inputs;
    grad_pixels_ = shape_.draws * height.outputs * width.outputs;
    packed_x_size_ = packs_x_ ? x_pixels_ * padded_ : 0;
    packed_grad_size_ = packs_grad_ ? grad_pixels_ * kPackedRows : 0;
    const int64_t sums = panel_ * tile_sums_;
    static thread_local Scratch<Scalar> scratch;
    sums_ = scratch.at_least(sums + slots * (packed_x_size_ + packed_grad_size_) + shape_.outputs);
    packed_x_ = sums_ + sums;
    packed_grad_ = packed_x_ + slots * packed_x_size_;
    bias_ = packed_grad_ + slots * packed_grad_size_;
    static thread_local Scratch<Loaded> loaded;
    slots_ = loaded.at_least(slots);
    std::fill_n(slots_, slots, Loaded{-1, -1, -1});
    static thread_local Scratch<Range> ranges;
    rows_ = ranges.at_least(height.taps + width.taps);
    columns_ = rows_ + height.taps;
    for (int64_t t = 0; t < height.taps; ++t) rows_[t] = inside(height, t);
    for (int64_t t = 0; t < width.taps; ++t) columns_[t] = inside(width, t);
  }

  int64_t taps() const { return taps_; }
  int64_t pitch() const { return pitch_; }          // input channels of a tile
  int64_t passes() const { return passes_; }        // tiles of a block
  int64_t tile_sums() const { return tile_sums_; }  // values of a tile, [kBlockRows, taps, pitch]
  int64_t panel() const { return panel_; }          // tiles that are best summed up together

  Tile tile(int64_t index) const {
    return at(index / passes_ * kBlockRows, index % passes_ * pitch_);
  }

  Tile after(const Tile& now) const {
    const int64_t input = now.input + pitch_;
    const bool ends = input >= shape_.inputs;
    return at(ends ? now.output + kBlockRows : now.output, ends ? 0 : input);
  }

  // Where the weights of a tile's output channel `r` begin in an example's row.
  int64_t place(int64_t group, const Tile& now, int64_t r) const {
    return ((group * shape_.outputs + now.output + r) * shape_.inputs + now.input) * taps_;
  }

  // Takes up an example's group, which stays in its slot until another takes its place.
  void load(int64_t example, int64_t group, int64_t slot = 0) {
    slot_ = slot;
    Loaded& loaded = slots_[slot];
    if (loaded.example == example && loaded.group == group) return;
    loaded = {example, group, -1};
    if (packs_x_) pack_x();
  }

  // Sums up `first` and the tiles after it, `count` in all and at most a panel, of what was loaded
  // last; calls expects(tile) long
  // before the sums are done. Returns [count, kBlockRows, taps, pitch], zeros between inputs.
  template <typename Expects>
  const Scalar* add_up(const Tile& first, int64_t count, Expects expects) {
    const Part all{0, shape_.draws, 0, shape_.height.outputs};
    if (grad_pixels_ == 0) std::fill_n(sums_, count * tile_sums_, Scalar(0));
    for_each(cut_.chunk, all, [&](const Part& chunk) {
      Tile now = first;
      for (int64_t i = 0; i < count; ++i, now = after(now)) {
        expects(now);
        if (packs_grad_) pack_grad(now.output);
        for_each(cut_.band, chunk,
                 [&](const Part& band) { add_band(band, now, sums_ + i * tile_sums_); });
      }
    });
    return sums_;
  }

  // The bias of what was loaded last, [outputs]: the sums of grad, vectors of channels where they
  // lie side by side.
  const Scalar* bias() {
    const Images<Scalar> grad = given_grad();
    std::fill_n(bias_, shape_.outputs, Scalar(0));
    for_each(cut_.band, {0, shape_.draws, 0, shape_.height.outputs}, [&](const Part& band) {
      add_to_bias(band, grad.at(band.draw, band.row, 0), grad.strides);
    });
    return bias_;
  }

 private:
  Tile at(int64_t output, int64_t input) const {
    return {output, std::min(kBlockRows, shape_.outputs - output), input,
            std::min(pitch_, shape_.inputs - input)};
  }

  // What a slot holds; of the output's gradient the channels from `output` on are packed.
  struct Loaded {
    int64_t example, group, output;
  };

  // What was loaded last, where the job has it.
  Images<Scalar> given_x() const {
    const ImageStrides& from = job_.x_strides;
    const ConvGeometry& shape = job_.geometry;
    const Loaded& what = slots_[slot_];
    return {
        job_.x + what.example * shape.draws * from.row + what.group * shape.inputs * from.channel,
        from, shape.draws, shape.height.inputs, shape.width.inputs};
  }

  Images<Scalar> given_grad() const {
    const ImageStrides& from = job_.grad_strides;
    const Loaded& what = slots_[slot_];
    return {job_.grad + what.example * shape_.draws * from.row +
                what.group * shape_.outputs * from.channel,
            from, shape_.draws, shape_.height.outputs, shape_.width.outputs};
  }

  // Where a tile's values come from.
  Images<Scalar> x_of(const Tile& now) const {
    Images<Scalar> x = makes_patches_ ? given_grad() : given_x();
    if (packs_x_) {
      const Scalar* values = packed_x_ + slot_ * packed_x_size_ + now.input * x_pixels_;
      return packed(values, x, std::min(pitch_, padded_ - now.input));
    }
    x.values += now.input;
    return x;
  }

  Images<Scalar> grad_of(const Tile& now) const {
    Images<Scalar> grad = given_grad();
    if (packs_grad_) {
      const Scalar* values = packed_grad_ + slot_ * packed_grad_size_ + now.output % kPackedRows;
      return packed(values, grad, kPackedRows);
    }
    grad.values += now.output * grad.strides.channel;
    return grad;
  }

  // Copies an example's input, or makes its patches, the channels of a tile together and in whole
  // vectors: in a row of many channels pixels are so far apart that they take each other's place
  // in the cache.
  void pack_x() {
    Scalar* to = packed_x_ + slot_ * packed_x_size_;
    if (makes_patches_) return Patches<Scalar>(job_.geometry).pack(given_x(), padded_, pitch_, to);
    for (int64_t input = 0; input < padded_; input += pitch_) {
      const int64_t width = std::min(pitch_, padded_ - input);
      to = pack(given_x(), input, std::min(width, shape_.inputs - input), width, to);
    }
  }

  // Copies the gradients of a block's output channels and of those beside it in the cache.
  void pack_grad(int64_t output) {
    Loaded& loaded = slots_[slot_];
    output -= output % kPackedRows;
    if (loaded.output == output) return;
    loaded.output = output;
    pack(given_grad(), output, std::min(kPackedRows, shape_.outputs - output), kPackedRows,
         packed_grad_ + slot_ * packed_grad_size_);
  }

  // All taps of one band, for one tile; the first band writes the sums.
  void add_band(const Part& part, const Tile& now, Scalar* sums) {
    const Images<Scalar> x = x_of(now), grad = grad_of(now);
    const ImageStrides &xs = x.strides, &gs = grad.strides;
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
    loop.adds = part.draw > 0 || part.row > 0;
    if (!loop.adds && !two) std::fill_n(sums, tile_sums_, Scalar(0));
    for (int64_t h = 0; h < shape_.height.taps; ++h) {
      const Range all = rows_[h];
      const Range rows{std::max(all.begin, part.row), std::min(all.end, part.row + part.rows)};
      loop.rows = rows.end - rows.begin;
      if (loop.rows <= 0 && loop.adds) continue;
      const int64_t top = input_position(shape_.height, rows.begin, h);
      for (int64_t w = 0; w < shape_.width.taps; ++w) {
        const Range columns = columns_[w];
        loop.columns = columns.end - columns.begin;
        const int64_t left = input_position(shape_.width, columns.begin, w);
        tiles(loop, x.at(part.draw, top, left), grad.at(part.draw, rows.begin, columns.begin),
              sums + (h * shape_.width.taps + w) * pitch_, taps_ * pitch_, now.outputs);
      }
    }
  }

  void add_to_bias(const Part& part, const Scalar* grad, const ImageStrides& gs) {
    const Scalar one = 1;
    TapLoop loop{};
    loop.draws = part.draws;
    loop.rows = part.rows;
    loop.columns = shape_.width.outputs;
    loop.x_draw = gs.row;
    loop.x_row = gs.height;
    loop.x_column = gs.width;
    loop.adds = true;
    int64_t c = 0;
    const int64_t lanes = tiles_.lanes;
    for (; gs.channel == 1 && c + 8 * lanes <= shape_.outputs; c += 8 * lanes) {
      tiles_.eight_vectors(loop, grad + c, &one, bias_ + c, 0, 1);
    }
    for (; gs.channel == 1 && c + lanes <= shape_.outputs; c += lanes) {
      tiles_.one_vector(loop, grad + c, &one, bias_ + c, 0, 1);
    }
    for (; c < shape_.outputs; ++c) {
      Scalar sum = 0;
      for (int64_t draw = 0; draw < part.draws; ++draw) {
        for (int64_t row = 0; row < part.rows; ++row) {
          const Scalar* pixel = grad + c * gs.channel + draw * gs.row + row * gs.height;
          for (int64_t w = 0; w < loop.columns; ++w) sum += pixel[w * gs.width];
        }
      }
      bias_[c] += sum;
    }
  }

  const ExampleWeightGrad<Scalar>& job_;
  const ConvGeometry shape_;  // what the tiles see: patches, where there are any
  const TileSet<Scalar>& tiles_;
  const int64_t padded_;  // input channels in whole vectors
  const int64_t pitch_;   // input channels that are summed at a time: two vectors
  const int64_t taps_;
  const int64_t passes_;
  const int64_t tile_sums_;
  bool makes_patches_, packs_x_, packs_grad_;
  int64_t x_pixels_, grad_pixels_;  // of an example
  int64_t packed_x_size_, packed_grad_size_;
  Cut cut_{};
  int64_t panel_ = 1;    // tiles that are worked on together
  Scalar* sums_;         // [panel, kBlockRows, taps, pitch]
  Scalar* packed_x_;     // [slots, passes, draws, height, width, pitch], the last pass narrower
  Scalar* packed_grad_;  // [slots, draws, height', width', kPackedRows]
  Scalar* bias_;         // [outputs], of one group
  Loaded* slots_;
  int64_t slot_ = 0;  // that was loaded last
  Range* rows_;       // of the output, that a tap of the height reads the input for
  Range* columns_;    // likewise of the width
};

}  // namespace privimage::cpu
