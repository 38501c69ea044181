// The kernel of the per-example weight gradient of a convolution, on tensor cores, as a function of
// a block; the launcher of example_weight_grad will dispatch to it (see conv_weight_grad.h).
//
// One block computes one tile [kOut, side, side, kIn] of one example's gradient, as a product of
// output gradients [pixels, kOut] and, for each tap, shifted inputs [pixels, kIn], summed over all
// pixels of all draws. Both come through shared memory, pixel by pixel: a band of the image at a
// time, with the halo that the taps reach, in kStages stages that copies fill ahead of the product.
// A tap is a shift of the row address and costs no copy. All taps of the tile stay in registers.
#pragma once

#include "kernels/block.h"
#include "kernels/conv_weight_grad.h"

namespace privimage::cuda {

constexpr int kStages = 3;
constexpr int kMostPixels = 128;  // of a band
constexpr int kMostWidth = 32;
constexpr int kMostHeight = 8;

// A warp has one row of taps and 32 x 32 channels of each: 96 sums a thread for three taps.
template <int kSideTaps, int kTileOut, int kTileIn>
struct ConvTile {
  static constexpr int kSide = kSideTaps;
  static constexpr int kHalo = kSide / 2;
  static constexpr int kOut = kTileOut;
  static constexpr int kIn = kTileIn;
  static constexpr int kWarps = kSide * (kOut / 32) * (kIn / 32);
  static constexpr int kThreads = 32 * kWarps;
  // Between pixels: 16 bytes more than the channels, so that 8 pixels in a row use all banks.
  static constexpr int kOutPitch = kOut + 8;
  static constexpr int kInPitch = kIn + 8;
};

// A band of the image, and where things lie in shared memory (in bytes).
struct ConvBand {
  int width, height;  // in pixels, without the halo
  int columns, rows;  // bands of an image
  int pixels;         // width * height, up to a multiple of 16
  int pitch;          // slots between two rows of the input, halo included
  int slots;          // of the input
  int grad_bytes, stage_bytes, shared_bytes;
};

constexpr int kMostInputs = 204;  // pixels of a band with its halo: 6 rows of 34 are the most
constexpr int kInputsAt = kMostPixels * sizeof(uint16_t);
constexpr int kSumsAt = kInputsAt + 26 * 16;
constexpr int kStagesAt = kSumsAt + 16 * sizeof(double);
static_assert(kMostInputs * sizeof(uint16_t) <= kSumsAt - kInputsAt);

template <typename Tile>
PRIVIMAGE_HOST_DEVICE ConvBand conv_band(const ConvWeightGrad& job) {
  const auto least = [](int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); };
  ConvBand band;
  band.width = least(kMostWidth, job.width);
  band.height =
      band.width == 0 ? 0 : least(least(kMostHeight, kMostPixels / band.width), job.height);
  const bool empty = band.height == 0;
  band.columns = empty ? 0 : static_cast<int>((job.width + band.width - 1) / band.width);
  band.rows = empty ? 0 : static_cast<int>((job.height + band.height - 1) / band.height);
  band.pixels = (band.width * band.height + 15) / 16 * 16;
  // Where 8 pixels can span two rows, the second goes on in the banks behind the first.
  band.pitch = band.width % 8 == 0 ? band.width + 2 * Tile::kHalo : band.width + 8;
  if (Tile::kHalo == 0) band.pitch = band.width;
  band.slots = (band.height + 2 * Tile::kHalo) * band.pitch;
  band.grad_bytes = band.pixels * Tile::kOutPitch * static_cast<int>(sizeof(Bfloat16));
  band.stage_bytes =
      band.grad_bytes + band.slots * Tile::kInPitch * static_cast<int>(sizeof(Bfloat16));
  band.shared_bytes = kStagesAt + kStages * band.stage_bytes;
  return band;
}

// Tiles of output and input channels: blocks of an example, and its squares.
template <typename Tile>
PRIVIMAGE_HOST_DEVICE int64_t conv_slots(const ConvWeightGrad& job) {
  const int64_t out_tiles = (job.out_channels + Tile::kOut - 1) / Tile::kOut;
  return out_tiles * ((job.in_channels + Tile::kIn - 1) / Tile::kIn);
}

// Brings 8 channels of a pixel into shared memory, zeros for what does not exist. `offset` is where
// they start in the image. Where a pixel's channels are no multiple of 16 bytes, they come singly.
PRIVIMAGE_DEVICE void bring_channels(const Block& block, const Shared<Bfloat16>& to, int index,
                                     const Bfloat16* image, int offset, int channels_left,
                                     bool wide) {
  if (wide) {
    const bool exists = channels_left > 0;
    block.copy16(to, index, image + (exists ? offset : 0), exists ? 16 : 0);
    return;
  }
  for (int i = 0; i < 8; ++i) {
    to.store(index + i, i < channels_left ? image[offset + i] : Bfloat16{0});
  }
}

// Two neighbours that one instruction stores.
struct alignas(8) FloatPair {
  float first, second;
};

template <typename Tile>
class ConvWeightGradBlock {
 public:
  PRIVIMAGE_DEVICE ConvWeightGradBlock(const Block& block, const ConvWeightGrad& job)
      : block_(block),
        job_(job),
        band_(conv_band<Tile>(job)),
        in_tiles_(static_cast<int>((job.in_channels + Tile::kIn - 1) / Tile::kIn)),
        first_out_(static_cast<int>(block.y()) / in_tiles_ * Tile::kOut),
        first_in_(static_cast<int>(block.y()) % in_tiles_ * Tile::kIn),
        tap_row_(block.warp() % Tile::kSide),
        warp_out_(block.warp() / Tile::kSide % (Tile::kOut / 32) * 32),
        warp_in_(block.warp() / Tile::kSide / (Tile::kOut / 32) * 32) {}

  template <bool kStore>
  PRIVIMAGE_DEVICE void run() {
    float sums[Tile::kSide][2][4][4] = {};  // [taps, 16 outputs, 8 inputs, fragment]
    write_places(grad_places(), band_.pixels, band_.width);
    write_places(input_places(), input_pixels(), band_.width + 2 * Tile::kHalo);
    block_.barrier();
    const int bands = static_cast<int>(job_.draws) * band_.rows * band_.columns;
    for (int i = 0; i < kStages - 1; ++i) bring(i, bands);
    for (int i = 0; i < bands; ++i) {
      block_.wait<kStages - 2>();
      // Everybody's copies of this band have landed, and everybody is done with the band before,
      // whose stage the next one takes.
      block_.barrier();
      bring(i + kStages - 1, bands);
      multiply(i % kStages, sums);
    }
    if (kStore) store(sums);
    write_squares(add_squares(sums));
  }

 private:
  // Row and column of each pixel of a band, 8 bits each: a look-up instead of a division.
  PRIVIMAGE_DEVICE Shared<uint16_t> grad_places() const {
    return block_.shared<uint16_t>(0, band_.pixels);
  }
  PRIVIMAGE_DEVICE Shared<uint16_t> input_places() const {
    return block_.shared<uint16_t>(kInputsAt, input_pixels());
  }
  PRIVIMAGE_DEVICE int input_pixels() const {
    return (band_.height + 2 * Tile::kHalo) * (band_.width + 2 * Tile::kHalo);
  }
  PRIVIMAGE_DEVICE void write_places(const Shared<uint16_t>& places, int pixels, int width) const {
    for (int pixel = block_.thread(); pixel < pixels; pixel += Tile::kThreads) {
      const int place = pixel / width * 256 + pixel % width;
      // Pixels that only fill up the last 16 have a gradient of zero, and may look anywhere.
      const bool exists = pixel < band_.width * band_.height || width != band_.width;
      places.store(pixel, static_cast<uint16_t>(exists ? place : 0));
    }
  }

  PRIVIMAGE_DEVICE Shared<Bfloat16> grad_stage(int stage) const {
    return block_.shared<Bfloat16>(kStagesAt + stage * band_.stage_bytes,
                                   band_.pixels * Tile::kOutPitch);
  }
  PRIVIMAGE_DEVICE Shared<Bfloat16> input_stage(int stage) const {
    return block_.shared<Bfloat16>(kStagesAt + stage * band_.stage_bytes + band_.grad_bytes,
                                   band_.slots * Tile::kInPitch);
  }

  // Starts the copies of band `i` into its stage; none are left after the last band, but the
  // groups are counted on.
  PRIVIMAGE_DEVICE void bring(int i, int bands) const {
    if (i < bands) {
      const int64_t draw = i / (band_.rows * band_.columns);
      const int top = i / band_.columns % band_.rows * band_.height;
      const int left = i % band_.columns * band_.width;
      const int64_t first = (block_.x() * job_.draws + draw) * job_.height * job_.width;
      bring_grads(grad_stage(i % kStages), job_.output_grad + first * job_.out_channels, top, left);
      bring_inputs(input_stage(i % kStages), job_.input + first * job_.in_channels,
                   top - Tile::kHalo, left - Tile::kHalo);
    }
    block_.commit();
  }

  PRIVIMAGE_DEVICE void bring_grads(const Shared<Bfloat16>& to, const Bfloat16* image, int top,
                                    int left) const {
    constexpr int kChunks = Tile::kOut / 8;
    const Shared<uint16_t> places = grad_places();
    const int channels = static_cast<int>(job_.out_channels);
    for (int i = block_.thread(); i < band_.pixels * kChunks; i += Tile::kThreads) {
      const int pixel = i / kChunks, channel = i % kChunks * 8, place = places.load(pixel);
      const int y = top + place / 256, x = left + place % 256;
      const bool inside = pixel < band_.width * band_.height && y < job_.height && x < job_.width;
      const int offset = (y * static_cast<int>(job_.width) + x) * channels + first_out_ + channel;
      bring_channels(block_, to, pixel * Tile::kOutPitch + channel, image, offset,
                     inside ? channels - first_out_ - channel : 0, channels % 8 == 0);
    }
  }

  PRIVIMAGE_DEVICE void bring_inputs(const Shared<Bfloat16>& to, const Bfloat16* image, int top,
                                     int left) const {
    constexpr int kChunks = Tile::kIn / 8;
    const Shared<uint16_t> places = input_places();
    const int channels = static_cast<int>(job_.in_channels);
    for (int i = block_.thread(); i < input_pixels() * kChunks; i += Tile::kThreads) {
      const int pixel = i / kChunks, channel = i % kChunks * 8, place = places.load(pixel);
      const int y = top + place / 256, x = left + place % 256;
      const bool inside = 0 <= y && y < job_.height && 0 <= x && x < job_.width;
      const int offset = (y * static_cast<int>(job_.width) + x) * channels + first_in_ + channel;
      const int slot = place / 256 * band_.pitch + place % 256;
      bring_channels(block_, to, slot * Tile::kInPitch + channel, image, offset,
                     inside ? channels - first_in_ - channel : 0, channels % 8 == 0);
    }
  }

  // Adds the products of a band, 16 pixels at a time.
  PRIVIMAGE_DEVICE void multiply(int stage, float (&sums)[Tile::kSide][2][4][4]) const {
    const Shared<Bfloat16> grads = grad_stage(stage), inputs = input_stage(stage);
    const Shared<uint16_t> places = grad_places();
    // Which row of the four 8x8 matrices this lane has the address of.
    const int lane = block_.lane();
    const int grad_pixel = lane / 16 * 8 + lane % 8;
    const int grad_channel = warp_out_ + lane / 8 % 2 * 8;
    const int input_pixel = lane / 8 % 2 * 8 + lane % 8;
    const int input_channel = warp_in_ + lane / 16 * 8;
    for (int pixel = 0; pixel < band_.pixels; pixel += 16) {
      uint32_t grad[2][4];
      for (int out = 0; out < 2; ++out) {
        block_.load_transposed(grad[out], grads,
                               (pixel + grad_pixel) * Tile::kOutPitch + grad_channel + 16 * out);
      }
      const int place = places.load(pixel + input_pixel);
      const int slot = (place / 256 + tap_row_) * band_.pitch + place % 256;
#pragma unroll
      for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
        for (int in = 0; in < 2; ++in) {
          uint32_t input[4];
          block_.load_transposed(input, inputs,
                                 (slot + tap) * Tile::kInPitch + input_channel + 16 * in);
#pragma unroll
          for (int out = 0; out < 2; ++out) {
            block_.multiply_add(sums[tap][out][2 * in], grad[out], input[0], input[1]);
            block_.multiply_add(sums[tap][out][2 * in + 1], grad[out], input[2], input[3]);
          }
        }
      }
    }
  }

  // The channels that element `i` of a thread's [16 outputs, 8 inputs, fragment] belongs to.
  PRIVIMAGE_DEVICE int out_channel(int i) const {
    return first_out_ + warp_out_ + i / 16 * 16 + i / 2 % 2 * 8 + block_.lane() / 4;
  }
  PRIVIMAGE_DEVICE int in_channel(int i) const {
    return first_in_ + warp_in_ + i / 4 % 4 * 8 + block_.lane() % 4 * 2 + i % 2;
  }

  // Writes what this thread has of the tile, two neighbours at once where they lie aligned.
  PRIVIMAGE_DEVICE void store(const float (&sums)[Tile::kSide][2][4][4]) const {
    float* part = job_.parts + block_.x() * job_.part_stride;
    const int channels = static_cast<int>(job_.in_channels);
    const bool paired = channels % 2 == 0 && reinterpret_cast<uintptr_t>(part) % 8 == 0;
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int i = 0; i < 32; i += 2) {
        const int out = out_channel(i), in = in_channel(i);
        if (out >= job_.out_channels || in >= channels) continue;
        const float* pair = &sums[tap][i / 16][i / 4 % 4][i % 4];
        const int64_t place = (out * Tile::kSide + tap_row_) * Tile::kSide + tap;
        float* to = part + place * channels + in;
        if (paired) {
          *reinterpret_cast<FloatPair*>(to) = {pair[0], pair[1]};
        } else {
          to[0] = pair[0];
          if (in + 1 < channels) to[1] = pair[1];
        }
      }
    }
  }

  // The squares of the very values that are stored, in double precision. Channels that don't exist
  // were brought as zeros and add none, unless a value is infinite, and then so is the norm.
  PRIVIMAGE_DEVICE double add_squares(const float (&sums)[Tile::kSide][2][4][4]) const {
    double squares = 0.0;
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const double value = sums[tap][i / 16][i / 4 % 4][i % 4];
        squares += value * value;
      }
    }
    return squares;
  }

  // Adds the squares of the lanes of a warp, then of the warps, in a fixed order.
  PRIVIMAGE_DEVICE void write_squares(double squares) const {
    const Shared<double> partial = block_.shared<double>(kSumsAt, Tile::kWarps);
    for (int mask = 16; mask > 0; mask /= 2) squares += block_.shuffle_xor(squares, mask);
    if (block_.lane() == 0) partial.store(block_.warp(), squares);
    block_.barrier();
    if (block_.thread() != 0) return;
    double total = 0.0;
    for (int warp = 0; warp < Tile::kWarps; ++warp) total += partial.load(warp);
    job_.squares[block_.x() * conv_slots<Tile>(job_) + block_.y()] = total;
  }

  const Block block_;
  const ConvWeightGrad& job_;
  const ConvBand band_;
  const int in_tiles_;
  const int first_out_, first_in_;  // channels of the tile
  const int tap_row_, warp_out_, warp_in_;
};

// What the launcher runs: blocks [examples, slots] of Tile::kThreads threads.
template <typename Tile, bool kStore>
PRIVIMAGE_DEVICE void conv_weight_grad(const Block& block, const ConvWeightGrad& job) {
  ConvWeightGradBlock<Tile>(block, job).template run<kStore>();
}

}  // namespace privimage::cuda
