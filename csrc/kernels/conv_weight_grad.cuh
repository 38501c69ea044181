// The kernel of the per-example weight gradients of convolutions, tile by tile, as a function of a
// block.
//
// One block computes one tile [kOut, kIn, side, side] of one example's gradient, as a product of
// output gradients [pixels, kOut] and, for each tap, shifted inputs [pixels, kIn], summed over all
// pixels of all draws. Both come through shared memory, pixel by pixel: a band of the image at a
// time, with the halo that the taps reach, in stages that copies fill ahead of the product. A tap
// is a shift of the row address and costs no copy. All taps of the tile stay in registers. The
// tiles of the first inputs add up the bias's gradient from the same output gradients.
#pragma once

#include <cmath>

#include "kernels/block.h"
#include "kernels/conv_tile.h"
#include "kernels/conv_write_out.cuh"

namespace privimage::cuda {

// Brings 16 bytes of a pixel's channels into shared memory, zeros for those that do not exist.
// `offset` is where they start in the image.
template <typename Scalar>
PRIVIMAGE_DEVICE void bring_channels(const Block& block, const Shared<Scalar>& to, int index,
                                     const Scalar* image, int offset, int channels_left) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Scalar));
  const int count = channels_left < 0 ? 0 : channels_left < kVector ? channels_left : kVector;
  block.copy16(to, index, image + (count > 0 ? offset : 0),
               count * static_cast<int>(sizeof(Scalar)));
}

// How many pieces of 16 bytes of a pixel are brought, as a power of two: those with channels that
// exist are among them.
template <int kVector, int kChannels>
PRIVIMAGE_DEVICE int chunk_bits(int channels_left) {
  int bits = 0;
  while (kVector << bits < kChannels && kVector << bits < channels_left) ++bits;
  return bits;
}

template <typename Tile>
class ConvWeightGradBlock {
 public:
  using Math = typename Tile::Math;
  using Scalar = typename Tile::Scalar;
  using Sums = typename ConvWriteOut<Tile>::Sums;
  using BiasSums = typename ConvWriteOut<Tile>::BiasSums;

  PRIVIMAGE_DEVICE ConvWeightGradBlock(const Block& block, const ConvWeightGrad<Scalar>& job,
                                       int64_t tile)
      : block_(block),
        job_(job),
        tile_(tile),
        shape_(job.geometry),
        band_(conv_band<Tile>(job.geometry, job.band_pixels)),
        inputs_(static_cast<int>(job.geometry.inputs)),
        outputs_(static_cast<int>(job.geometry.outputs)),
        first_out_(static_cast<int>(tile) / in_tiles() * Tile::kOut),
        first_in_(static_cast<int>(tile) % in_tiles() * Tile::kIn),
        tap_row_(block.warp() % Tile::kSide),
        warp_out_(block.warp() / Tile::kSide % (Tile::kOut / Tile::kWarpOut) * Tile::kWarpOut),
        warp_in_(block.warp() / Tile::kSide / (Tile::kOut / Tile::kWarpOut) * Tile::kWarpIn),
        has_bias_(job.bias.channels > 0 && first_in_ == 0) {}

  PRIVIMAGE_DEVICE void run() {
    Sums sums = {};
    BiasSums bias = {};
    write_places(grad_places(), band_.pixels, band_.width, band_.width * band_.height);
    const int x_pixels = band_.x_width * band_.x_height;
    write_places(x_places(), x_pixels, band_.x_width, x_pixels);
    block_.barrier();
    const int bands = static_cast<int>(shape_.draws) * band_.rows * band_.columns;
    for (int i = 0; i < Tile::kStages && i < bands; ++i) clear_rest(i);
    for (int i = 0; i < Tile::kStages - 1; ++i) bring(i, bands);
    for (int i = 0; i < bands; ++i) {
      block_.template wait<Tile::kStages - 2>();
      // Everybody's copies of this band have landed, and everybody is done with the band before,
      // whose stage the next one takes.
      block_.barrier();
      bring(i + Tile::kStages - 1, bands);
      multiply(i % Tile::kStages, sums);
      if (has_bias_) add_bias(i % Tile::kStages, bias);
    }
    const ConvShare mine{first_out_, first_in_, warp_out_, warp_in_, tap_row_, has_bias_};
    ConvWriteOut<Tile>(block_, job_, mine).run(sums, bias, tile_);
  }

 private:
  PRIVIMAGE_DEVICE int in_tiles() const { return static_cast<int>(conv_in_tiles<Tile>(shape_)); }

  // Row and column of each pixel of a band, 8 bits each: a look-up instead of a division. Pixels
  // that only fill up the last 16 have a gradient of zero, and may look anywhere.
  PRIVIMAGE_DEVICE Shared<uint16_t> grad_places() const {
    return block_.template shared<uint16_t>(0, band_.pixels);
  }
  PRIVIMAGE_DEVICE Shared<uint16_t> x_places() const {
    return block_.template shared<uint16_t>(kInputsAt, band_.x_width * band_.x_height);
  }
  PRIVIMAGE_DEVICE void write_places(const Shared<uint16_t>& places, int pixels, int width,
                                     int existing) const {
    for (int pixel = block_.thread(); pixel < pixels; pixel += Tile::kThreads) {
      const int place = pixel / width * 256 + pixel % width;
      places.store(pixel, static_cast<uint16_t>(pixel < existing ? place : 0));
    }
  }

  PRIVIMAGE_DEVICE Shared<Scalar> grad_stage(int stage) const {
    return block_.template shared<Scalar>(kStagesAt + stage * band_.stage_bytes,
                                          band_.pixels * Tile::kOutPitch);
  }
  PRIVIMAGE_DEVICE Shared<Scalar> x_stage(int stage) const {
    return block_.template shared<Scalar>(kStagesAt + stage * band_.stage_bytes + band_.grad_bytes,
                                          band_.slots * Tile::kInPitch);
  }

  // The pieces of a pixel that no band brings are zeros from the start.
  PRIVIMAGE_DEVICE void clear_rest(int stage) const {
    clear<Tile::kOut, Tile::kOutPitch>(grad_stage(stage), band_.pixels, grad_bits());
    clear<Tile::kIn, Tile::kInPitch>(x_stage(stage), band_.slots, x_bits());
  }
  template <int kChannels, int kPitch>
  PRIVIMAGE_DEVICE void clear(const Shared<Scalar>& to, int pixels, int bits) const {
    constexpr int kChunks = kChannels / Tile::kVector;
    if (1 << bits == kChunks) return;
    for (int i = block_.thread(); i < pixels * kChunks; i += Tile::kThreads) {
      const int pixel = i / kChunks, chunk = i % kChunks;
      if (chunk >> bits == 0) continue;
      block_.copy16(to, pixel * kPitch + chunk * Tile::kVector, job_.x.data, 0);
    }
  }
  PRIVIMAGE_DEVICE int grad_bits() const {
    return chunk_bits<Tile::kVector, Tile::kOut>(outputs_ - first_out_);
  }
  PRIVIMAGE_DEVICE int x_bits() const {
    return chunk_bits<Tile::kVector, Tile::kIn>(inputs_ - first_in_);
  }

  // Starts the copies of band `i` into its stage; none are left after the last band, but the
  // groups are counted on.
  PRIVIMAGE_DEVICE void bring(int i, int bands) const {
    if (i < bands) {
      const int64_t draw = i / (band_.rows * band_.columns);
      const int top = i / band_.columns % band_.rows * band_.height;
      const int left = i % band_.columns * band_.width;
      const int64_t image = block_.x() * shape_.draws + draw;
      bring_grads(
          grad_stage(i % Tile::kStages),
          job_.grad.data + image * shape_.height.outputs * shape_.width.outputs * job_.grad.pitch,
          top, left);
      bring_inputs(x_stage(i % Tile::kStages),
                   job_.x.data + image * shape_.height.inputs * shape_.width.inputs * job_.x.pitch,
                   top, left);
    }
    block_.commit();
  }

  PRIVIMAGE_DEVICE void bring_grads(const Shared<Scalar>& to, const Scalar* image, int top,
                                    int left) const {
    const int bits = grad_bits(), pitch = static_cast<int>(job_.grad.pitch);
    const Shared<uint16_t> places = grad_places();
    const int height = static_cast<int>(shape_.height.outputs);
    const int width = static_cast<int>(shape_.width.outputs);
    for (int i = block_.thread(); i < band_.pixels << bits; i += Tile::kThreads) {
      const int pixel = i >> bits, channel = (i - (pixel << bits)) * Tile::kVector;
      const int place = places.load(pixel);
      const int y = top + place / 256, x = left + place % 256;
      const bool inside = pixel < band_.width * band_.height && y < height && x < width;
      const int offset = (y * width + x) * pitch + first_out_ + channel;
      bring_channels(block_, to, pixel * Tile::kOutPitch + channel, image, offset,
                     inside ? outputs_ - first_out_ - channel : 0);
    }
  }

  PRIVIMAGE_DEVICE void bring_inputs(const Shared<Scalar>& to, const Scalar* image, int top,
                                     int left) const {
    const int bits = x_bits(), pitch = static_cast<int>(job_.x.pitch);
    const Shared<uint16_t> places = x_places();
    const int height = static_cast<int>(shape_.height.inputs);
    const int width = static_cast<int>(shape_.width.inputs);
    // A single tap reads every stride-th pixel, several read all between the first and the last.
    const int down = Tile::kSide == 1 ? static_cast<int>(shape_.height.stride) : 1;
    const int right = Tile::kSide == 1 ? static_cast<int>(shape_.width.stride) : 1;
    const int first_y =
        top * static_cast<int>(shape_.height.stride) - static_cast<int>(shape_.height.padding);
    const int first_x =
        left * static_cast<int>(shape_.width.stride) - static_cast<int>(shape_.width.padding);
    for (int i = block_.thread(); i < band_.x_width * band_.x_height << bits; i += Tile::kThreads) {
      const int pixel = i >> bits, channel = (i - (pixel << bits)) * Tile::kVector;
      const int place = places.load(pixel), row = place / 256, column = place % 256;
      const int y = first_y + row * down, x = first_x + column * right;
      const bool inside = 0 <= y && y < height && 0 <= x && x < width;
      const int offset = (y * width + x) * pitch + first_in_ + channel;
      const int slot =
          row * band_.pitch + column % Tile::kStride * band_.phase + column / Tile::kStride;
      bring_channels(block_, to, slot * Tile::kInPitch + channel, image, offset,
                     inside ? inputs_ - first_in_ - channel : 0);
    }
  }

  // Where the first tap of this warp's row finds a pixel's input, and how far tap `tap` is from it.
  PRIVIMAGE_DEVICE int first_slot(int place) const {
    return (place / 256 * Tile::kStride + tap_row_) * band_.pitch + place % 256;
  }
  PRIVIMAGE_DEVICE int tap_shift(int tap) const {
    return tap % Tile::kStride * band_.phase + tap / Tile::kStride;
  }

  // Adds the products of a band, some pixels at a time.
  PRIVIMAGE_DEVICE void multiply(int stage, Sums& sums) const {
    const Shared<Scalar> grads = grad_stage(stage), inputs = x_stage(stage);
    const Shared<uint16_t> places = grad_places();
    for (int pixel = 0; pixel < band_.pixels; pixel += Math::kDepth) {
      step(Math{}, grads, inputs, places, pixel, sums);
    }
  }

  // The warps of the same outputs have 8 pixels in turns. Where half of the lanes do for a pixel,
  // the others take the one four further on, which lies in the other banks.
  PRIVIMAGE_DEVICE void add_bias(int stage, BiasSums& bias) const {
    constexpr int kLanes = Tile::kWarpOut / 2;
    const Shared<Scalar> grads = grad_stage(stage);
    const int first = block_.lane() / kLanes * 4;
    const int channel = warp_out_ + block_.lane() % kLanes * 2;
    const int turn = tap_row_ + warp_in_ / Tile::kWarpIn * Tile::kSide;
    for (int pixel = turn * 8; pixel < band_.pixels; pixel += Tile::kTurns * 8) {
#pragma unroll
      for (int i = 0; i < kLanes / 4; ++i) {
        const auto pair =
            grads.template load_vector<2>((pixel + first + i) * Tile::kOutPitch + channel);
        bias[0] += widen(pair.at[0]);
        bias[1] += widen(pair.at[1]);
      }
    }
  }

  PRIVIMAGE_DEVICE void step(Bf16Math, const Shared<Bfloat16>& grads,
                             const Shared<Bfloat16>& inputs, const Shared<uint16_t>& places,
                             int pixel, Sums& sums) const {
    // Which row of the four 8x8 matrices this lane has the address of.
    const int lane = block_.lane();
    const int grad_pixel = lane / 16 * 8 + lane % 8;
    const int grad_channel = warp_out_ + lane / 8 % 2 * 8;
    const int input_pixel = lane / 8 % 2 * 8 + lane % 8;
    const int input_channel = warp_in_ + lane / 16 * 8;
    uint32_t grad[Tile::kWarpOut / 16][4];
#pragma unroll
    for (int out = 0; out < Tile::kWarpOut / 16; ++out) {
      block_.load_transposed(grad[out], grads,
                             (pixel + grad_pixel) * Tile::kOutPitch + grad_channel + 16 * out);
    }
    const int slot = first_slot(places.load(pixel + input_pixel));
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int in = 0; in < Tile::kWarpIn / 16; ++in) {
        uint32_t input[4];
        block_.load_transposed(input, inputs,
                               (slot + tap_shift(tap)) * Tile::kInPitch + input_channel + 16 * in);
#pragma unroll
        for (int out = 0; out < Tile::kWarpOut / 16; ++out) {
          block_.multiply_add(sums[tap][out][2 * in], grad[out], input[0], input[1]);
          block_.multiply_add(sums[tap][out][2 * in + 1], grad[out], input[2], input[3]);
        }
      }
    }
  }

  // Fragment register i has output lane / 4 + 8 (i % 2) at pixel lane % 4 + 4 (i / 2), and the
  // input's register i the same pixels of input lane / 4.
  PRIVIMAGE_DEVICE void step(Tf32Math, const Shared<float>& grads, const Shared<float>& inputs,
                             const Shared<uint16_t>& places, int pixel, Sums& sums) const {
    const int member = block_.lane() % 4, group = block_.lane() / 4;
    uint32_t grad[Tile::kWarpOut / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::kWarpOut / 4; ++i) {
      const int at = (pixel + member + i / 2 % 2 * 4) * Tile::kOutPitch + warp_out_ + group +
                     i / 4 * 16 + i % 2 * 8;
      grad[i / 4][i % 4] = block_.to_tf32(grads.load(at));
    }
    const int slots[2] = {first_slot(places.load(pixel + member)),
                          first_slot(places.load(pixel + member + 4))};
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int in = 0; in < Tile::kWarpIn / 8; ++in) {
        uint32_t input[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          input[i] = block_.to_tf32(inputs.load((slots[i] + tap_shift(tap)) * Tile::kInPitch +
                                                warp_in_ + group + 8 * in));
        }
#pragma unroll
        for (int out = 0; out < Tile::kWarpOut / 16; ++out) {
          block_.multiply_add_tf32(sums[tap][out][in], grad[out], input[0], input[1]);
        }
      }
    }
  }

  // The same places of the tile as tensor cores give a thread, so that one epilogue does for all.
  PRIVIMAGE_DEVICE void step(Fp32Math, const Shared<float>& grads, const Shared<float>& inputs,
                             const Shared<uint16_t>& places, int pixel, Sums& sums) const {
    float grad[Tile::kWarpOut / 8];
#pragma unroll
    for (int i = 0; i < Tile::kWarpOut / 8; ++i) {
      grad[i] = grads.load(pixel * Tile::kOutPitch + warp_out_ + block_.lane() / 4 + 8 * i);
    }
    const int slot = first_slot(places.load(pixel));
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int in = 0; in < Tile::kWarpIn / 8; ++in) {
        const auto input = inputs.template load_vector<2>(
            (slot + tap_shift(tap)) * Tile::kInPitch + warp_in_ + 8 * in + block_.lane() % 4 * 2);
#pragma unroll
        for (int i = 0; i < Tile::kWarpOut / 4; ++i) {
          float& sum = sums[tap][i / 4][in][i % 4];
          sum = std::fmaf(grad[i / 2], input.at[i % 2], sum);
        }
      }
    }
  }

  const Block block_;
  const ConvWeightGrad<Scalar>& job_;
  const int64_t tile_;
  const ConvGeometry& shape_;
  const ConvBand band_;
  const int inputs_, outputs_;      // channels
  const int first_out_, first_in_;  // channels of the tile
  const int tap_row_, warp_out_, warp_in_;
  const bool has_bias_;  // to add up: the tiles of the first inputs do
};

// What the launcher runs: blocks [examples, blocks of all layers] of Tile::kThreads threads.
template <typename Tile>
PRIVIMAGE_DEVICE void conv_weight_grads(const Block& block,
                                        const ConvWeightGrads<typename Tile::Scalar>& jobs) {
  int layer = 0;
  if constexpr (Tile::kMostLayers > 1) {
    while (layer + 1 < jobs.count && block.y() >= jobs.first_block[layer + 1]) ++layer;
  }
  ConvWeightGradBlock<Tile>(block, jobs.layers[layer], block.y() - jobs.first_block[layer]).run();
}

}  // namespace privimage::cuda
