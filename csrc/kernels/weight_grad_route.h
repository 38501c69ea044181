// Which kernel computes a layer's weight gradient: the tiled one where it can, the plain one for
// the rest; and the grids of the plain ones. Arithmetic of the host.
#pragma once

#include <optional>

#include "kernels/conv_tile.h"
#include "shared/example_weight_grad.h"

namespace privimage::cuda {

// Whether rows lie one behind the other, each [height, width, channels].
inline bool is_channels_last(const ImageStrides& strides, int64_t channels, int64_t height,
                             int64_t width) {
  const auto fits = [](int64_t size, int64_t stride, int64_t expected) {
    return size <= 1 || stride == expected;
  };
  return fits(channels, strides.channel, 1) && fits(width, strides.width, channels) &&
         fits(height, strides.height, width * channels) && strides.row == height * width * channels;
}

inline bool has_tile(const ConvGeometry& shape) {
  const ConvAxis &height = shape.height, &width = shape.width;
  if (shape.groups != 1 || height.taps != width.taps) return false;
  if (height.taps == 1) return true;
  return height.taps == 3 && height.dilation == 1 && width.dilation == 1 &&
         height.stride == width.stride && height.stride <= 2;
}

// All pixels of an example in one row, where each is multiplied with itself alone: bands are then
// full, however small the images are.
inline ConvGeometry with_one_row(ConvGeometry shape) {
  ConvAxis &height = shape.height, &width = shape.width;
  const bool alone = height.taps == 1 && height.stride == 1 && width.stride == 1 &&
                     height.padding == 0 && width.padding == 0;
  if (!alone) return shape;
  width.inputs = width.outputs = product(product(shape.draws, height.inputs), width.inputs);
  height.inputs = height.outputs = 1;
  shape.draws = 1;
  return shape;
}

// The job of the tiled kernel, or nothing: other types, strides, taps, groups, and sizes that it
// can't count, are for the plain one.
template <typename Math>
std::optional<ConvWeightGrad<typename Math::Scalar>> tiled(
    const ExampleWeightGrad<typename Math::Scalar>& job) {
  const ConvGeometry& shape = job.geometry;
  const ConvAxis &height = shape.height, &width = shape.width;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  if (!has_tile(shape) || !aligned(job.x) || !aligned(job.grad)) return {};
  if (!is_channels_last(job.x_strides, shape.inputs, height.inputs, width.inputs)) return {};
  if (!is_channels_last(job.grad_strides, shape.outputs, height.outputs, width.outputs)) return {};
  const ConvGeometry seen = with_one_row(shape);
  const bool possible = choose_tile<Math>(seen, [&](auto tile) {
    using Tile = decltype(tile);
    return conv_counts_fit<Tile>(seen) && conv_launch<Tile>(seen).possible();
  });
  if (!possible) return {};
  return ConvWeightGrad<typename Math::Scalar>{
      seen,           job.x,   job.grad, job.weight, job.weight_stride,
      job.accumulate, nullptr, nullptr,  nullptr};
}

// The plain kernels.

constexpr int kWeightThreads = 128;
constexpr int kBiasChannels = 32;
constexpr int kBiasLanes = 32;

PRIVIMAGE_HOST_DEVICE int64_t weights_an_example(const ConvGeometry& shape) {
  return shape.groups * shape.outputs * shape.inputs * shape.height.taps * shape.width.taps;
}

// One thread a weight; an example's blocks follow each other.
inline LaunchShape weight_launch(const ConvGeometry& shape) {
  const int64_t blocks = blocks_for(weights_an_example(shape), kWeightThreads);
  return {product(shape.examples, blocks), 1, kWeightThreads, 0};
}

template <typename Scalar>
LaunchShape bias_launch(const ConvGeometry& shape) {
  return {shape.examples, blocks_for(shape.groups * shape.outputs, kBiasChannels),
          kBiasChannels * kBiasLanes,
          kBiasLanes * (kBiasChannels + 1) * int64_t{sizeof(Wide<Scalar>)}};
}

}  // namespace privimage::cuda
