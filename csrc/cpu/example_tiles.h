// The sums of tiles of an example's weight gradient on the CPU: some output channels x some input
// channels x all taps.
//
// An example's gradient is a matrix product for each tap: output channels x (draws, pixels) times
// (draws, pixels) x input channels. Tiles of it are summed in registers over a band of pixels,
// which all taps read from the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/example_weight_grad_isa.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// Output channels of a tile, and of how many its gradients are packed: a cache line of floats.
constexpr int64_t kBlockRows = 8;
constexpr int64_t kPackedRows = 2 * kBlockRows;

// Pixels of a band: x stays in the first-level cache, and adding registers to the sums costs little
// beside so many products. 64 to 128 are equally fast.
constexpr int64_t kBandPixels = 96;

// Bytes of an example's tensors that stay in the second-level cache while all its output channels
// are worked on, beside as many bytes of their sums.
constexpr int64_t kCacheBytes = 3 << 18;

// Blocks of output channels, tiles of the same output channels.
inline int64_t blocks_a_group(const ConvGeometry& shape) {
  return (shape.outputs + kBlockRows - 1) / kBlockRows;
}

// Bytes that are copied in one go, by a vector or two.
constexpr int64_t kCopied = 32;

// Copies `bytes`, a multiple of kCopied, of each of `count` pixels that are `apart` bytes apart,
// and asks for what lies behind, which is copied next.
PRIVIMAGE_CLONES void copy_pixels(const char* from, int64_t apart, int64_t count, int64_t bytes,
                                  char* to) {
  for (int64_t i = 0; i < count; ++i, from += apart, to += bytes) {
    for (int64_t at = 0; at < bytes; at += kCopied) std::memcpy(to + at, from + at, kCopied);
    for (int64_t at = bytes; at < 2 * bytes; at += 64) __builtin_prefetch(from + at);
  }
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

// sums [taps, pitch] -> [inputs, taps], turned around into `row` in the first-level cache, since
// single values going to memory fill the store buffer.
template <typename Scalar>
const Scalar* in_order(const Scalar* sums, int64_t inputs, int64_t taps, int64_t pitch,
                       Scalar* row) {
  if (taps == 1) return sums;
  (taps == 9 ? turn<9, Scalar> : turn<0, Scalar>)(sums, inputs, taps, pitch, row);
  return row;
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
        shape_(job.geometry),
        tiles_(tiles),
        padded_((shape_.inputs + tiles.lanes - 1) / tiles.lanes * tiles.lanes),
        pitch_(2 * tiles.lanes),
        taps_(shape_.height.taps * shape_.width.taps),
        passes_((padded_ + pitch_ - 1) / pitch_),
        tile_sums_(kBlockRows * taps_ * pitch_) {
    packs_grad_ = split(cache_bytes);
    packs_x_ = packs_grad_ || job.x_strides.channel != 1 || padded_ != shape_.inputs;
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
    for_each(chunk_, all, [&](const Part& chunk) {
      Tile now = first;
      for (int64_t i = 0; i < count; ++i, now = after(now)) {
        expects(now);
        if (packs_grad_) pack_grad(now.output);
        for_each(band_, chunk,
                 [&](const Part& band) { add_band(band, now, sums_ + i * tile_sums_); });
      }
    });
    return sums_;
  }

  // The bias of what was loaded last, [outputs]: the sums of grad, vectors of channels where they
  // lie side by side.
  const Scalar* bias() {
    const Images grad = given_grad();
    std::fill_n(bias_, shape_.outputs, Scalar(0));
    for_each(band_, {0, shape_.draws, 0, shape_.height.outputs}, [&](const Part& band) {
      add_to_bias(band, grad.at(band.draw, band.row, 0), grad.strides);
    });
    return bias_;
  }

 private:
  Tile at(int64_t output, int64_t input) const {
    return {output, std::min(kBlockRows, shape_.outputs - output), input,
            std::min(pitch_, shape_.inputs - input)};
  }

  // Part of an example: `rows` rows of the output from `row` on, of `draws` draws from `draw` on.
  struct Part {
    int64_t draw, draws, row, rows;
  };

  // What a slot holds; of the output's gradient the channels from `output` on are packed.
  struct Loaded {
    int64_t example, group, output;
  };

  // Images somewhere in memory.
  struct Images {
    const Scalar* values;
    ImageStrides strides;

    const Scalar* at(int64_t draw, int64_t row, int64_t column) const {
      return values + draw * strides.row + row * strides.height + column * strides.width;
    }
  };

  // What is worked on together: bands of pixels for the first-level cache; and where an example is
  // larger than the second-level cache, chunks of bands, each for a panel of many tiles. Returns
  // whether it fits.
  bool split(int64_t cache_bytes) {
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
    return fits;
  }

  // What was loaded last, where the job has it.
  Images given_x() const {
    const ImageStrides& from = job_.x_strides;
    const Loaded& what = slots_[slot_];
    return {
        job_.x + what.example * shape_.draws * from.row + what.group * shape_.inputs * from.channel,
        from};
  }

  Images given_grad() const {
    const ImageStrides& from = job_.grad_strides;
    const Loaded& what = slots_[slot_];
    return {job_.grad + what.example * shape_.draws * from.row +
                what.group * shape_.outputs * from.channel,
            from};
  }

  // Pixels side by side, `width` values each.
  static ImageStrides packed(int64_t rows, int64_t columns, int64_t width) {
    return {rows * columns * width, 1, columns * width, width};
  }

  // Where a tile's values come from.
  Images x_of(const Tile& now) const {
    if (packs_x_) {
      const int64_t vectors = std::min(pitch_, padded_ - now.input);
      return {packed_x_ + slot_ * packed_x_size_ + now.input * x_pixels_,
              packed(shape_.height.inputs, shape_.width.inputs, vectors)};
    }
    const Images x = given_x();
    return {x.values + now.input, x.strides};
  }

  Images grad_of(const Tile& now) const {
    if (packs_grad_) {
      return {packed_grad_ + slot_ * packed_grad_size_ + now.output % kPackedRows,
              packed(shape_.height.outputs, shape_.width.outputs, kPackedRows)};
    }
    const Images grad = given_grad();
    return {grad.values + now.output * grad.strides.channel, grad.strides};
  }

  // Copies an example's input, the channels of a tile together and in whole vectors: in a row of
  // many channels pixels are so far apart that they take each other's place in the cache.
  void pack_x() {
    Scalar* to = packed_x_ + slot_ * packed_x_size_;
    for (int64_t input = 0; input < padded_; input += pitch_) {
      const int64_t width = std::min(pitch_, padded_ - input);
      const int64_t count = std::min(width, shape_.inputs - input);
      to = pack(given_x(), shape_.height.inputs, shape_.width.inputs, input, count, width, to);
    }
  }

  // Copies the gradients of a block's output channels and of those beside it in the cache.
  void pack_grad(int64_t output) {
    Loaded& loaded = slots_[slot_];
    output -= output % kPackedRows;
    if (loaded.output == output) return;
    loaded.output = output;
    pack(given_grad(), shape_.height.outputs, shape_.width.outputs, output,
         std::min(kPackedRows, shape_.outputs - output), kPackedRows,
         packed_grad_ + slot_ * packed_grad_size_);
  }

  // Copies `count` channels, followed by zeros up to `width`. Returns the end.
  Scalar* pack(const Images& from, int64_t rows, int64_t columns, int64_t channel, int64_t count,
               int64_t width, Scalar* to) const {
    const int64_t apart = from.strides.channel;
    const int64_t size = sizeof(Scalar);
    const bool is_whole = apart == 1 && count == width && width * size % kCopied == 0;
    for (int64_t draw = 0; draw < shape_.draws; ++draw) {
      for (int64_t row = 0; row < rows; ++row) {
        const Scalar* pixel = from.at(draw, row, 0) + channel * apart;
        if (is_whole) {
          copy_pixels(reinterpret_cast<const char*>(pixel), from.strides.width * size, columns,
                      width * size, reinterpret_cast<char*>(to));
          to += columns * width;
          continue;
        }
        for (int64_t column = 0; column < columns; ++column, to += width) {
          for (int64_t c = 0; c < count; ++c) to[c] = pixel[c * apart];
          std::fill(to + count, to + width, Scalar(0));
          pixel += from.strides.width;
        }
      }
    }
    return to;
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

  // All taps of one band, for one tile; the first band writes the sums.
  void add_band(const Part& part, const Tile& now, Scalar* sums) {
    const Images x = x_of(now), grad = grad_of(now);
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
  const ConvGeometry& shape_;
  const TileSet<Scalar>& tiles_;
  const int64_t padded_;  // input channels in whole vectors
  const int64_t pitch_;   // input channels that are summed at a time: two vectors
  const int64_t taps_;
  const int64_t passes_;
  const int64_t tile_sums_;
  bool packs_x_, packs_grad_;
  int64_t x_pixels_, grad_pixels_;  // of an example
  int64_t packed_x_size_, packed_grad_size_;
  Part band_{}, chunk_{};
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
