// What becomes of the sums of a weight gradient's tile: rows, squares, a share of the scaled sum.
//
// Tensor cores leave a thread single values from all over the tile, whose rows have their taps and
// then their inputs side by side. So the sums go through shared memory, some output channels at a
// time, and a warp writes neighbouring places, a sector of memory after the other. Squares are
// added before, from registers: their order does not depend on what else is asked for.
#pragma once

#include <cmath>

#include "kernels/bias_grad.cuh"
#include "kernels/block.h"
#include "kernels/conv_tile.h"
#include "shared/grid.h"

namespace privimage::cuda {

// What a warp has of the tile: a row of taps, some channels.
struct ConvShare {
  int first_out, first_in;  // channels of the tile,
  int warp_out, warp_in;    // and of the warp from there on
  int tap_row;
  bool has_bias;  // whether the tile adds up the bias of its outputs
};

template <typename Tile>
class ConvWriteOut {
 public:
  using Scalar = typename Tile::Scalar;
  // [taps, 16 outputs, 8 inputs, fragment]
  using Sums = float[Tile::kSide][Tile::kWarpOut / 16][Tile::kWarpIn / 8][4];
  using BiasSums = float[2];  // of two neighbouring outputs

  PRIVIMAGE_DEVICE ConvWriteOut(const Block& block, const ConvWeightGrad<Scalar>& job,
                                const ConvShare& mine)
      : block_(block),
        job_(job),
        mine_(mine),
        inputs_(static_cast<int>(job.geometry.inputs)),
        outputs_(static_cast<int>(job.geometry.outputs)) {}

  // All threads call it when they are done with their bands.
  PRIVIMAGE_DEVICE void run(Sums& sums, BiasSums& bias, int64_t slot) const {
    const double scale = job_.sum != nullptr ? block_.load(job_.scales + block_.x()) : 0.0;
    settle(sums);
    double squares = job_.squares.values != nullptr ? add_squares(sums) : 0.0;
    // Everybody is done with the stages of the last bands, where the rest takes place.
    block_.barrier();
    if (mine_.has_bias) share_bias(bias);
    if (job_.rows.asked() || scale != 0.0) {
      for (int piece = 0; piece < kPieces; ++piece) write(sums, piece, scale);
    } else {
      block_.barrier();  // before the shares of the bias are read
    }
    if (mine_.has_bias) squares += use_bias(scale);
    if (job_.squares.values != nullptr) write_squares(squares, slot);
  }

 private:
  static constexpr int kTaps = Tile::kSide * Tile::kSide;
  static constexpr int kPieces = Tile::kWarpOut / 8;  // 8 outputs of every warp each

  // Makes the sums what the rows hold: norms and sums are of that.
  PRIVIMAGE_DEVICE void settle(Sums& sums) const {
    const GradRows<float>& rows = job_.rows;
    if (!rows.accumulate && rows.half == nullptr) return;
    const int lane = block_.lane();
#pragma unroll
    for (int i = 0; i < Tile::kWarpOut / 8; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kWarpIn / 4; ++j) {
        const int out = mine_.first_out + mine_.warp_out + i * 8 + lane / 4;
        const int in = mine_.first_in + mine_.warp_in + j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (out >= outputs_ || in >= inputs_) continue;
        const int64_t taps = (static_cast<int64_t>(out) * inputs_ + in) * Tile::kSide;
#pragma unroll
        for (int tap = 0; tap < Tile::kSide; ++tap) {
          const int64_t place = (taps + mine_.tap_row) * Tile::kSide + tap;
          float& sum = sums[tap][i / 2][j / 2][i % 2 * 2 + j % 2];
          sum = rows.settled(block_, block_.x(), place, sum);
        }
      }
    }
  }

  // In double precision, where the product of two floats is exact. Channels that don't exist were
  // brought as zeros and add none, unless a value is infinite, and then so is the norm.
  PRIVIMAGE_DEVICE double add_squares(const Sums& sums) const {
    double squares = 0.0;
#pragma unroll
    for (int tap = 0; tap < Tile::kSide; ++tap) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        constexpr int kInputs = Tile::kWarpIn / 8;
        const double value = sums[tap][i / 4 / kInputs][i / 4 % kInputs][i % 4];
        squares += value * value;
      }
    }
    return squares;
  }

  // Two pieces take turns, so that one barrier a piece will do: who fills a piece has met everybody
  // who has read the one before the last.
  PRIVIMAGE_DEVICE Shared<float> room_of(int piece) const {
    return block_.template shared<float>(kStagesAt + piece % 2 * Tile::kPieceBytes,
                                         Tile::kPieceBytes / static_cast<int>(sizeof(float)));
  }

  PRIVIMAGE_DEVICE void write(const Sums& sums, int piece, double scale) const {
    const Shared<float> room = room_of(piece);
    // Registers have no index: one of these is the piece.
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i == piece) fill(room, sums, i);
    }
    block_.barrier();
    const GradRows<float>& rows = job_.rows;
    if (rows.half != nullptr) {
      for_each_value(room, piece, rows.half_at(block_.x(), 0),
                     [&](Bfloat16* to, float value) { block_.store(to, to_bfloat16(value)); });
    } else if (rows.wide != nullptr) {
      for_each_value(room, piece, rows.wide_at(block_.x(), 0),
                     [&](float* to, float value) { block_.store(to, value); });
    }
    // Each coordinate is rounded towards zero before it is added; integers have no order to keep.
    if (scale != 0.0) {
      for_each_value(room, piece, job_.sum, [&](int64_t* to, float value) {
        block_.add(to, int64_t{grid_coordinate(value, scale)});
      });
    }
  }

  // Every second output has its two neighbouring inputs the other way round, and the pitch does the
  // rest: 8 outputs and 4 inputs go into 32 banks.
  PRIVIMAGE_DEVICE void fill(const Shared<float>& room, const Sums& sums, int piece) const {
    const int lane = block_.lane();
    const bool odd = lane / 4 % 2 != 0;
    const int start = (mine_.warp_out / Tile::kWarpOut * 8 + lane / 4) * Tile::kPiecePitch +
                      (mine_.warp_in + lane % 4 * 2) * kTaps + mine_.tap_row * Tile::kSide;
    const int first = start + (odd ? kTaps : 0), second = start + (odd ? 0 : kTaps);
#pragma unroll
    for (int in = 0; in < Tile::kWarpIn / 8; ++in) {
#pragma unroll
      for (int tap = 0; tap < Tile::kSide; ++tap) {
        const float even_input = sums[tap][piece / 2][in][piece % 2 * 2];
        const float odd_input = sums[tap][piece / 2][in][piece % 2 * 2 + 1];
        room.store(first + in * 8 * kTaps + tap, odd ? odd_input : even_input);
        room.store(second + in * 8 * kTaps + tap, odd ? even_input : odd_input);
      }
    }
  }

  // Calls body(place, value) for what this thread writes of a piece, where `first` is the place of
  // the layer's first weight. The warps that have sums of the same outputs share their values: a
  // third of an output's each, for three taps. What lies before memory's first whole sector of 32
  // bytes comes last.
  template <typename To, typename Body>
  PRIVIMAGE_DEVICE void for_each_value(const Shared<float>& room, int piece, To* first,
                                       Body body) const {
    constexpr int kTogether = Tile::kIn * kTaps / Tile::kSide / 32,
                  kStep = Tile::kIn / Tile::kWarpIn;
    const int inputs = inputs_ - mine_.first_in;
    const int width = (inputs < Tile::kIn ? inputs : Tile::kIn) * kTaps;
    const int start = mine_.tap_row * kTogether * 32 + block_.lane();
    const int begin = mine_.warp_in / Tile::kWarpIn,
              out = mine_.first_out + mine_.warp_out + piece * 8;
    const int64_t stride = static_cast<int64_t>(inputs_) * kTaps;
    To* row = first + (out + begin) * stride + mine_.first_in * kTaps;
    for (int i = begin; i < 8 && out + i < outputs_; i += kStep, row += kStep * stride) {
      const int ahead = static_cast<int>(-reinterpret_cast<uintptr_t>(row) % 32 / sizeof(To));
      const int lead = ahead < width ? ahead : 0;
      int columns[kTogether];
      float values[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int column = start + 32 * j + lead;
        columns[j] = column < width ? column : column - width;
        values[j] =
            room.load((mine_.warp_out / Tile::kWarpOut * 8 + i) * Tile::kPiecePitch + columns[j]);
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (start + 32 * j < width) body(row + columns[j], values[j]);
      }
    }
  }

  // [turns, outputs of the tile]: what the warps have that share their outputs.
  PRIVIMAGE_DEVICE Shared<float> bias_shares() const {
    return block_.template shared<float>(kStagesAt + 2 * Tile::kPieceBytes,
                                         Tile::kTurns * Tile::kOut);
  }
  PRIVIMAGE_DEVICE void share_bias(BiasSums& bias) const {
    const int turn = mine_.tap_row + mine_.warp_in / Tile::kWarpIn * Tile::kSide;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (Tile::kWarpOut == 32) bias[i] += block_.shuffle_xor(bias[i], 16);
      const int out = mine_.warp_out + block_.lane() * 2 + i;
      if (block_.lane() < Tile::kWarpOut / 2) bias_shares().store(turn * Tile::kOut + out, bias[i]);
    }
  }
  // The first threads have an output each; returns its square.
  PRIVIMAGE_DEVICE double use_bias(double scale) const {
    const int channel = mine_.first_out + block_.thread();
    if (block_.thread() >= Tile::kOut || channel >= outputs_) return 0.0;
    float sum = 0.0f;
    for (int turn = 0; turn < Tile::kTurns; ++turn) {
      sum += bias_shares().load(turn * Tile::kOut + block_.thread());
    }
    const double value = keep_bias(block_, job_.bias, block_.x(), channel, sum, scale);
    return value * value;
  }

  // Adds the squares of the lanes of a warp, then of the warps, in a fixed order.
  PRIVIMAGE_DEVICE void write_squares(double squares, int64_t slot) const {
    const Shared<double> partial = block_.template shared<double>(kSumsAt, Tile::kWarps);
    for (int mask = 16; mask > 0; mask /= 2) squares += block_.shuffle_xor(squares, mask);
    if (block_.lane() == 0) partial.store(block_.warp(), squares);
    block_.barrier();
    if (block_.thread() != 0) return;
    double total = 0.0;
    for (int warp = 0; warp < Tile::kWarps; ++warp) total += partial.load(warp);
    job_.squares.at(block_.x(), slot) = total;
  }

  const Block& block_;
  const ConvWeightGrad<Scalar>& job_;
  const ConvShare mine_;
  const int inputs_, outputs_;  // channels
};

}  // namespace privimage::cuda
