// What the tiled weight gradient multiplies, in shared memory: bands of the image with the halo
// that the taps reach, in stages that copies fill ahead of the product.
#pragma once

#include "kernels/block.h"
#include "kernels/conv_tile.h"

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

// The stages of one tile of one example.
template <typename Tile>
class ConvStages {
 public:
  using Scalar = typename Tile::Scalar;

  PRIVIMAGE_DEVICE ConvStages(const Block& block, const ConvWeightGrad<Scalar>& job, int tile)
      : block_(block),
        job_(job),
        shape_(job.geometry),
        band_(conv_band<Tile>(job.geometry, job.band_pixels)),
        inputs_(static_cast<int>(job.geometry.inputs)),
        outputs_(static_cast<int>(job.geometry.outputs)),
        first_out_(tile / in_tiles() * Tile::kOut),
        first_in_(tile % in_tiles() * Tile::kIn) {}

  PRIVIMAGE_DEVICE const ConvBand& band() const { return band_; }
  PRIVIMAGE_DEVICE int first_out() const { return first_out_; }  // channel of the tile
  PRIVIMAGE_DEVICE int first_in() const { return first_in_; }

  // Starts the copies of the first bands; returns how many there are, of all draws.
  PRIVIMAGE_DEVICE int start() const {
    write_places(grad_places(), band_.pixels, band_.width, band_.width * band_.height);
    const int x_pixels = band_.x_width * band_.x_height;
    write_places(x_places(), x_pixels, band_.x_width, x_pixels);
    block_.barrier();
    const int bands = static_cast<int>(shape_.draws) * band_.rows * band_.columns;
    for (int i = 0; i < Tile::kStages && i < bands; ++i) clear_rest(i);
    for (int i = 0; i < Tile::kStages - 1; ++i) bring(i, bands);
    return bands;
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
          grads(i % Tile::kStages),
          job_.grad.data + image * shape_.height.outputs * shape_.width.outputs * job_.grad.pitch,
          top, left);
      bring_inputs(inputs(i % Tile::kStages),
                   job_.x.data + image * shape_.height.inputs * shape_.width.inputs * job_.x.pitch,
                   top, left);
    }
    block_.commit();
  }

  PRIVIMAGE_DEVICE Shared<Scalar> grads(int stage) const {
    return block_.template shared<Scalar>(kStagesAt + stage * band_.stage_bytes,
                                          band_.pixels * Tile::kOutPitch);
  }
  PRIVIMAGE_DEVICE Shared<Scalar> inputs(int stage) const {
    return block_.template shared<Scalar>(kStagesAt + stage * band_.stage_bytes + band_.grad_bytes,
                                          band_.slots * Tile::kInPitch);
  }

  // Row and column of each pixel of a band, 8 bits each: a look-up instead of a division. Pixels
  // that only fill up the last 16 have a gradient of zero, and may look anywhere.
  PRIVIMAGE_DEVICE Shared<uint16_t> grad_places() const {
    return block_.template shared<uint16_t>(0, band_.pixels);
  }

 private:
  PRIVIMAGE_DEVICE int in_tiles() const { return static_cast<int>(conv_in_tiles<Tile>(shape_)); }

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

  // The pieces of a pixel that no band brings are zeros from the start.
  PRIVIMAGE_DEVICE void clear_rest(int stage) const {
    clear<Tile::kOut, Tile::kOutPitch>(grads(stage), band_.pixels, grad_bits());
    clear<Tile::kIn, Tile::kInPitch>(inputs(stage), band_.slots, x_bits());
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

  const Block block_;
  const ConvWeightGrad<Scalar>& job_;
  const ConvGeometry& shape_;
  const ConvBand band_;
  const int inputs_, outputs_;      // channels
  const int first_out_, first_in_;  // channels of the tile
};

}  // namespace privimage::cuda
