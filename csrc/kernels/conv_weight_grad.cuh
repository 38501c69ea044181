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

constexpr int kSlotBytes = kMostPixels * sizeof(uint16_t);
constexpr int kSumBytes = 16 * sizeof(double);  // one a warp
constexpr int kStagesAt = kSlotBytes + kSumBytes;

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

// Brings 8 channels of a pixel into shared memory, zeros for what does not exist. Where a pixel's
// channels are no multiple of 16 bytes, they come one by one.
PRIVIMAGE_DEVICE void bring_channels(const Block& block, const Shared<Bfloat16>& to, int index,
                                     const Bfloat16* pixels, int64_t pixel, int64_t channel,
                                     int64_t channels, bool inside) {
  const Bfloat16* from = pixels + pixel * channels + channel;
  if (channels % 8 == 0) {
    const bool exists = inside && channel < channels;
    block.copy16(to, index, exists ? from : pixels, exists ? 16 : 0);
    return;
  }
  for (int i = 0; i < 8; ++i) {
    const bool exists = inside && channel + i < channels;
    to.store(index + i, exists ? from[i] : Bfloat16{0});
  }
}

template <typename Tile>
class ConvWeightGradBlock {
 public:
  PRIVIMAGE_DEVICE ConvWeightGradBlock(const Block& block, const ConvWeightGrad& job)
      : block_(block),
        job_(job),
        band_(conv_band<Tile>(job)),
        in_tiles_((job.in_channels + Tile::kIn - 1) / Tile::kIn),
        first_out_(block.y() / in_tiles_ * Tile::kOut),
        first_in_(block.y() % in_tiles_ * Tile::kIn),
        tap_row_(block.warp() % Tile::kSide),
        warp_out_(block.warp() / Tile::kSide % (Tile::kOut / 32) * 32),
        warp_in_(block.warp() / Tile::kSide / (Tile::kOut / 32) * 32) {}

  template <bool kStore>
  PRIVIMAGE_DEVICE void run() {
    float sums[Tile::kSide][2][4][4] = {};  // [taps, 16 outputs, 8 inputs, fragment]
    write_slots();
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
    finish<kStore>(sums);
  }

 private:
  PRIVIMAGE_DEVICE Shared<uint16_t> slots() const {
    return block_.shared<uint16_t>(0, kMostPixels);
  }
  PRIVIMAGE_DEVICE Shared<Bfloat16> grad_stage(int stage) const {
    return block_.shared<Bfloat16>(kStagesAt + stage * band_.stage_bytes,
                                   band_.pixels * Tile::kOutPitch);
  }
  PRIVIMAGE_DEVICE Shared<Bfloat16> input_stage(int stage) const {
    return block_.shared<Bfloat16>(kStagesAt + stage * band_.stage_bytes + band_.grad_bytes,
                                   band_.slots * Tile::kInPitch);
  }

  // Where the input of each pixel lies for the upper left tap; the pixels that fill up the last
  // 16 have a gradient of zero and may look anywhere.
  PRIVIMAGE_DEVICE void write_slots() const {
    const Shared<uint16_t> slots = this->slots();
    for (int pixel = block_.thread(); pixel < band_.pixels; pixel += Tile::kThreads) {
      const bool exists = pixel < band_.width * band_.height;
      const int slot = pixel / band_.width * band_.pitch + pixel % band_.width;
      slots.store(pixel, static_cast<uint16_t>(exists ? slot : 0));
    }
  }

  // Starts the copies of band `i` into its stage; none are left after the last band, but the
  // groups are counted on.
  PRIVIMAGE_DEVICE void bring(int i, int bands) const {
    if (i < bands) {
      const int64_t draw = i / (band_.rows * band_.columns);
      const int top = i / band_.columns % band_.rows * band_.height;
      const int left = i % band_.columns * band_.width;
      const int64_t image = (block_.x() * job_.draws + draw) * job_.height * job_.width;
      bring_grad(grad_stage(i % kStages), image, top, left);
      bring_input(input_stage(i % kStages), image, top - Tile::kHalo, left - Tile::kHalo);
    }
    block_.commit();
  }

  PRIVIMAGE_DEVICE void bring_grad(const Shared<Bfloat16>& to, int64_t image, int top,
                                   int left) const {
    constexpr int kChunks = Tile::kOut / 8;
    for (int i = block_.thread(); i < band_.pixels * kChunks; i += Tile::kThreads) {
      const int pixel = i / kChunks, channel = i % kChunks * 8;
      const int y = top + pixel / band_.width, x = left + pixel % band_.width;
      const bool inside = pixel < band_.width * band_.height && y < job_.height && x < job_.width;
      bring_channels(block_, to, pixel * Tile::kOutPitch + channel, job_.output_grad,
                     image + y * job_.width + x, first_out_ + channel, job_.out_channels, inside);
    }
  }

  PRIVIMAGE_DEVICE void bring_input(const Shared<Bfloat16>& to, int64_t image, int top,
                                    int left) const {
    constexpr int kChunks = Tile::kIn / 8;
    const int width = band_.width + 2 * Tile::kHalo;
    const int pixels = (band_.height + 2 * Tile::kHalo) * width;
    for (int i = block_.thread(); i < pixels * kChunks; i += Tile::kThreads) {
      const int pixel = i / kChunks, channel = i % kChunks * 8;
      const int row = pixel / width, column = pixel % width;
      const int y = top + row, x = left + column;
      const bool inside = 0 <= y && y < job_.height && 0 <= x && x < job_.width;
      bring_channels(block_, to, (row * band_.pitch + column) * Tile::kInPitch + channel,
                     job_.input, image + y * job_.width + x, first_in_ + channel, job_.in_channels,
                     inside);
    }
  }

  // Adds the products of a band, 16 pixels at a time.
  PRIVIMAGE_DEVICE void multiply(int stage, float (&sums)[Tile::kSide][2][4][4]) const {
    const Shared<Bfloat16> grads = grad_stage(stage), inputs = input_stage(stage);
    const Shared<uint16_t> slots = this->slots();
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
      const int slot = slots.load(pixel + input_pixel) + tap_row_ * band_.pitch;
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

  // Writes the tile, and the squares of the very values that it writes, in double precision: each
  // thread its own, then the lanes of a warp, then the warps, in a fixed order.
  template <bool kStore>
  PRIVIMAGE_DEVICE void finish(const float (&sums)[Tile::kSide][2][4][4]) const {
    double squares = 0.0;
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int i = 0; i < 2 * 4 * 4; ++i) {
        const int row = 16 * (i / 16) + i / 2 % 2 * 8, column = 8 * (i / 4 % 4) + i % 2;
        const int64_t out = first_out_ + warp_out_ + row + block_.lane() / 4;
        const int64_t in = first_in_ + warp_in_ + column + block_.lane() % 4 * 2;
        if (out >= job_.out_channels || in >= job_.in_channels) continue;
        const float value = sums[tap][i / 16][i / 4 % 4][i % 4];
        squares += static_cast<double>(value) * value;
        if (!kStore) continue;
        const int64_t place = (out * Tile::kSide + tap_row_) * Tile::kSide + tap;
        job_.parts[block_.x() * job_.part_stride + place * job_.in_channels + in] = value;
      }
    }
    write_squares(squares);
  }

  PRIVIMAGE_DEVICE void write_squares(double squares) const {
    const Shared<double> partial = block_.shared<double>(kSlotBytes, Tile::kWarps);
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
  const int64_t in_tiles_;
  const int64_t first_out_, first_in_;  // channels of the tile
  const int tap_row_, warp_out_, warp_in_;
};

// What the launcher runs: blocks [examples, slots] of Tile::kThreads threads.
template <typename Tile, bool kStore>
PRIVIMAGE_DEVICE void conv_weight_grad(const Block& block, const ConvWeightGrad& job) {
  ConvWeightGradBlock<Tile>(block, job).template run<kStore>();
}

}  // namespace privimage::cuda
