// The kernel of the per-example weight gradients of convolutions, tile by tile, as a function of a
// block.
//
// One block computes one tile [kOut, kIn, side, side] of one example's gradient, as a product of
// output gradients [pixels, kOut] and, for each tap, shifted inputs [pixels, kIn], summed over all
// pixels of all draws. Both come through shared memory, pixel by pixel, a band of the image at a
// time. A tap is a shift of the row address and costs no copy. All taps of the tile stay in
// registers. The tiles of the first inputs add up the bias's gradient from the same output
// gradients.
#pragma once

#include <cmath>

#include "kernels/block.h"
#include "kernels/conv_stages.cuh"
#include "kernels/conv_write_out.cuh"

namespace privimage::cuda {

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
        stages_(block, job, static_cast<int>(tile)),
        tap_row_(block.warp() % Tile::kSide),
        warp_out_(block.warp() / Tile::kSide % (Tile::kOut / Tile::kWarpOut) * Tile::kWarpOut),
        warp_in_(block.warp() / Tile::kSide / (Tile::kOut / Tile::kWarpOut) * Tile::kWarpIn),
        has_bias_(job.bias.channels > 0 && stages_.first_in() == 0) {}

  PRIVIMAGE_DEVICE void run() {
    Sums sums = {};
    BiasSums bias = {};
    const int bands = stages_.start();
    for (int i = 0; i < bands; ++i) {
      block_.template wait<Tile::kStages - 2>();
      // Everybody's copies of this band have landed, and everybody is done with the band before,
      // whose stage the next one takes.
      block_.barrier();
      stages_.bring(i + Tile::kStages - 1, bands);
      multiply(i % Tile::kStages, sums);
      if (has_bias_) add_bias(i % Tile::kStages, bias);
    }
    const ConvShare mine{
        stages_.first_out(), stages_.first_in(), warp_out_, warp_in_, tap_row_, has_bias_};
    ConvWriteOut<Tile>(block_, job_, mine).run(sums, bias, tile_);
  }

 private:
  // Where the first tap of this warp's row finds a pixel's input, and how far tap `tap` is from it.
  PRIVIMAGE_DEVICE int first_slot(int place) const {
    return (place / 256 * Tile::kStride + tap_row_) * stages_.band().pitch + place % 256;
  }
  PRIVIMAGE_DEVICE int tap_shift(int tap) const {
    return tap % Tile::kStride * stages_.band().phase + tap / Tile::kStride;
  }

  // Adds the products of a band, some pixels at a time.
  PRIVIMAGE_DEVICE void multiply(int stage, Sums& sums) const {
    const Shared<Scalar> grads = stages_.grads(stage), inputs = stages_.inputs(stage);
    const Shared<uint16_t> places = stages_.grad_places();
    for (int pixel = 0; pixel < stages_.band().pixels; pixel += Math::kDepth) {
      step(Math{}, grads, inputs, places, pixel, sums);
    }
  }

  // The warps of the same outputs have 8 pixels in turns. Where half of the lanes do for a pixel,
  // the others take the one four further on, which lies in the other banks.
  PRIVIMAGE_DEVICE void add_bias(int stage, BiasSums& bias) const {
    constexpr int kLanes = Tile::kWarpOut / 2;
    const Shared<Scalar> grads = stages_.grads(stage);
    const int first = block_.lane() / kLanes * 4;
    const int channel = warp_out_ + block_.lane() % kLanes * 2;
    const int turn = tap_row_ + warp_in_ / Tile::kWarpIn * Tile::kSide;
    for (int pixel = turn * 8; pixel < stages_.band().pixels; pixel += Tile::kTurns * 8) {
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
  const ConvStages<Tile> stages_;
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
