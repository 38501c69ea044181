// How the tiled weight gradient is cut: tiles of channels, bands of pixels, and where a band lies
// in shared memory. Plain arithmetic for the launcher, the kernel and the tests.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/conv_weight_grad.h"
#include "kernels/launch.h"

namespace privimage::cuda {

// Ways to multiply: the type of what comes in, and the pixels that one step takes.
struct Bf16Math {
  using Scalar = Bfloat16;
  static constexpr int kDepth = 16;
  static constexpr int kStages = 3;
  static constexpr int kPixels = 128;
};
struct Tf32Math {
  using Scalar = float;
  static constexpr int kDepth = 8;
  static constexpr int kStages = 2;
  static constexpr int kPixels = 64;
};
struct Fp32Math {
  using Scalar = float;
  static constexpr int kDepth = 1;
  static constexpr int kStages = 2;
  static constexpr int kPixels = 64;
};

// A warp has one row of taps and 64 x 16 or 32 x 32 channels of each: 96 sums a thread for three
// taps. It reads its inputs for each of them, its output gradients once, so that of several taps
// few inputs and many outputs take least.
template <typename MathOf, int kSideTaps, int kStrideOf, int kTileOut, int kTileIn>
struct ConvTile {
  using Math = MathOf;
  using Scalar = typename Math::Scalar;
  static constexpr int kSide = kSideTaps;
  // Of what lies in shared memory: a single tap brings the pixels that it reads, and no others.
  static constexpr int kStride = kStrideOf;
  static constexpr int kOut = kTileOut;
  static constexpr int kIn = kTileIn;
  static constexpr int kWarpOut = kSide == 3 && kOut == 64 ? 64 : 32;
  static constexpr int kWarpIn = kWarpOut == 64 ? 16 : 32;
  static constexpr int kWarps = kSide * (kOut / kWarpOut) * (kIn / kWarpIn);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = Math::kStages;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Scalar));
  // Between pixels: 8 values more than the channels, so that neighbouring pixels that are read
  // together lie in different banks.
  static constexpr int kOutPitch = kOut + 8;
  static constexpr int kInPitch = kIn + 8;
  // Of a band.
  static constexpr int kMostPixels = Math::kPixels / kStride;
  static constexpr int kMostHeight = 8;
  // Warps that multiply the same output gradients.
  static constexpr int kTurns = kSide * (kIn / kWarpIn);
  // The sums leave through shared memory in pieces of 8 outputs a warp, [outputs, inputs, taps].
  static constexpr int kPiecePitch = kIn * kSide * kSide + 4;
  static constexpr int kPieceBytes =
      kOut / kWarpOut * 8 * kPiecePitch * static_cast<int>(sizeof(float));
  static constexpr int kWriteOutBytes =
      2 * kPieceBytes + kTurns * kOut * static_cast<int>(sizeof(float));
  // Of one launch. Layers of several taps fill a GPU alone, and their tiles leave no register for
  // the choice between layers.
  static constexpr int kMostLayers = kSide == 1 ? cuda::kMostLayers : 1;
};

// A band of the output, and where things lie in shared memory (in bytes).
struct ConvBand {
  int width, height;      // in pixels of the output
  int columns, rows;      // bands of an image
  int pixels;             // width * height, up to a multiple of 16
  int x_width, x_height;  // pixels of the input that the band reads
  int phase;              // slots of the columns that one tap of a row reads
  int pitch;              // slots between two rows of the input
  int slots;              // of the input
  int grad_bytes, stage_bytes, shared_bytes;
};

constexpr int kLeastBandPixels = 16;
constexpr int kMostBandPixels = 128;
constexpr int kMostBandInputs = 320;
constexpr int kInputsAt = kMostBandPixels * sizeof(uint16_t);
constexpr int kSumsAt = kInputsAt + kMostBandInputs * sizeof(uint16_t);
constexpr int kStagesAt = kSumsAt + 16 * sizeof(double);

template <typename Tile>
PRIVIMAGE_HOST_DEVICE ConvBand conv_band(const ConvGeometry& shape, int most_pixels) {
  const auto least = [](int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); };
  ConvBand band;
  // Four rows and more of several taps: fewer would bring a halo as large as the band.
  band.width = least(Tile::kSide == 1 ? most_pixels : most_pixels / 4, shape.width.outputs);
  band.height = band.width == 0 ? 0
                                : least(least(Tile::kMostHeight, most_pixels / band.width),
                                        shape.height.outputs);
  const bool empty = band.height == 0;
  band.columns = empty ? 0 : static_cast<int>((shape.width.outputs + band.width - 1) / band.width);
  band.rows = empty ? 0 : static_cast<int>((shape.height.outputs + band.height - 1) / band.height);
  band.pixels = (band.width * band.height + 15) / 16 * 16;
  band.x_width = empty ? 0 : (band.width - 1) * Tile::kStride + Tile::kSide;
  band.x_height = empty ? 0 : (band.height - 1) * Tile::kStride + Tile::kSide;
  // A stride keeps its columns apart by their remainder, so that a tap's lie side by side.
  band.phase = (band.x_width + Tile::kStride - 1) / Tile::kStride;
  band.pitch = Tile::kStride * band.phase;
  // Where pixels that are read together can span two rows, the second goes on in the banks behind
  // the first.
  if (Tile::kSide > 1 && Tile::kStride == 1 && band.width % 8 != 0) band.pitch = band.width + 8;
  band.slots = band.x_height * band.pitch;
  constexpr int kBytes = sizeof(typename Tile::Scalar);
  band.grad_bytes = band.pixels * Tile::kOutPitch * kBytes;
  band.stage_bytes = band.grad_bytes + band.slots * Tile::kInPitch * kBytes;
  band.shared_bytes = kStagesAt + Tile::kStages * band.stage_bytes;
  return band;
}

// The pixels of the largest bands that this much shared memory has room for.
template <typename Tile>
int band_pixels(const ConvGeometry& shape, int64_t most_shared_bytes) {
  int pixels = Tile::kMostPixels;
  while (pixels > kLeastBandPixels &&
         conv_band<Tile>(shape, pixels).shared_bytes > most_shared_bytes) {
    pixels /= 2;
  }
  return pixels;
}

// Tiles of output and input channels: blocks of an example, and its squares. The first of the
// inputs have the bias, and are there without any inputs.
template <typename Tile>
PRIVIMAGE_HOST_DEVICE int64_t conv_in_tiles(const ConvGeometry& shape) {
  return shape.inputs > Tile::kIn ? (shape.inputs + Tile::kIn - 1) / Tile::kIn : 1;
}
template <typename Tile>
PRIVIMAGE_HOST_DEVICE int64_t conv_slots(const ConvGeometry& shape) {
  return (shape.outputs + Tile::kOut - 1) / Tile::kOut * conv_in_tiles<Tile>(shape);
}

// The kernel counts pixels and channels of an image, and bands of an example, in 32 bits.
template <typename Tile>
bool conv_counts_fit(const ConvWeightGrad<typename Tile::Scalar>& layer) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const ConvGeometry& shape = layer.geometry;
  for (const ConvAxis& axis : {shape.height, shape.width}) {
    if (axis.inputs >= kMost || axis.outputs >= kMost || axis.padding >= kMost) return false;
    if (axis.stride >= kMost / std::max<int64_t>(axis.outputs, 1)) return false;
  }
  if (layer.x.pitch >= kMost || layer.grad.pitch >= kMost || shape.draws >= kMost) return false;
  const int64_t in_pixels = shape.height.inputs * shape.width.inputs;
  const int64_t out_pixels = shape.height.outputs * shape.width.outputs;
  if (in_pixels >= kMost || out_pixels >= kMost) return false;
  const ConvBand band = conv_band<Tile>(shape, layer.band_pixels);
  return in_pixels * layer.x.pitch < kMost && out_pixels * layer.grad.pitch < kMost &&
         int64_t{band.rows} * band.columns * shape.draws < kMost;
}

// Blocks: examples; tiles.
template <typename Tile>
LaunchShape conv_launch(const ConvWeightGrad<typename Tile::Scalar>& layer) {
  const ConvBand band = conv_band<Tile>(layer.geometry, layer.band_pixels);
  return {layer.geometry.examples, conv_slots<Tile>(layer.geometry), Tile::kThreads,
          std::max(band.shared_bytes, kStagesAt + Tile::kWriteOutBytes)};
}

// Adds a layer to those of a launch, whose shape grows; false, and nothing done, where it does not
// fit in.
template <typename Tile>
bool add_layer(const ConvWeightGrad<typename Tile::Scalar>& layer,
               ConvWeightGrads<typename Tile::Scalar>& together, LaunchShape& shape) {
  const LaunchShape alone = conv_launch<Tile>(layer);
  const LaunchShape grown{alone.blocks_x, shape.blocks_y + alone.blocks_y, alone.threads,
                          std::max(shape.shared_bytes, alone.shared_bytes)};
  const bool fits = conv_counts_fit<Tile>(layer) && grown.possible();
  if (!fits || together.count == Tile::kMostLayers) return false;
  together.first_block[together.count] = shape.blocks_y;
  together.layers[together.count++] = layer;
  shape = grown;
  return true;
}

// Calls run(tile) with the tile that does a layer best.
template <typename Math, typename Run>
auto choose_tile(const ConvGeometry& shape, Run run) {
  if (shape.height.taps == 1) return run(ConvTile<Math, 1, 1, 64, 64>{});
  if (shape.height.stride == 2) return run(ConvTile<Math, 3, 2, 64, 64>{});
  if (shape.outputs <= 32 && shape.inputs <= 32) return run(ConvTile<Math, 3, 1, 32, 32>{});
  return run(ConvTile<Math, 3, 1, 64, 64>{});
}

template <typename Tile>
bool has_tile_of(const ConvGeometry& shape) {
  return choose_tile<typename Tile::Math>(
      shape, [](auto tile) { return std::is_same_v<decltype(tile), Tile>; });
}

}  // namespace privimage::cuda
