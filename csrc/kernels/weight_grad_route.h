// Which kernel computes a layer's weight gradient: the tiled one where it can, the plain one for
// the rest; and the grids of the plain ones. Arithmetic of the host.
#pragma once

#include <optional>

#include "kernels/conv_tile.h"
#include "kernels/weight_grad.h"
#include "shared/example_weight_grad.h"

namespace privimage::cuda {

// Values from one pixel to the next, where rows lie one behind the other, each [height, width,
// pitch], and pixels are 16-byte aligned: as the tiled kernel takes them. 0 where they do not.
template <typename Scalar>
int64_t pixel_pitch(const Scalar* data, const ImageStrides& strides, int64_t rows, int64_t channels,
                    int64_t height, int64_t width) {
  constexpr int64_t kVector = 16 / sizeof(Scalar);
  // Strides between less than two mean nothing.
  const int64_t pitch = width > 1    ? strides.width
                        : height > 1 ? strides.height
                        : rows > 1   ? strides.row
                                     : blocks_for(channels, kVector) * kVector;
  const auto fits = [](int64_t size, int64_t stride, int64_t expected) {
    return size <= 1 || stride == expected;
  };
  const bool dense = fits(channels, strides.channel, 1) && fits(width, strides.width, pitch) &&
                     fits(height, strides.height, width * pitch) &&
                     fits(rows, strides.row, height * width * pitch);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && pitch % kVector == 0;
  return dense && aligned && pitch >= channels ? pitch : 0;
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

// The bias's share of a job, whose squares lie behind those of the weight.
template <typename Scalar>
BiasGrad<Scalar> bias_of(const WeightGradOnGpu<Scalar>& all, int64_t weight_slots) {
  const ExampleWeightGrad<Scalar>& job = all.layer;
  const ConvGeometry& shape = job.geometry;
  return {job.grad,
          job.grad_strides,
          shape.draws,
          all.with_bias ? product(shape.groups, shape.outputs) : 0,
          shape.height.outputs,
          shape.width.outputs,
          all.bias,
          all.squares.behind(weight_slots),
          all.scales,
          all.bias_sum};
}

// The job of the tiled kernel, or nothing: other types, layouts, taps, groups, and sizes that it
// can't count or whose tiles need more shared memory than a block has here, are for the plain one.
template <typename Math>
std::optional<ConvWeightGrad<typename Math::Scalar>> tiled(
    const WeightGradOnGpu<typename Math::Scalar>& all,
    int64_t most_shared_bytes = kMostSharedBytes) {
  const ExampleWeightGrad<typename Math::Scalar>& job = all.layer;
  const ConvGeometry& shape = job.geometry;
  const ConvAxis &height = shape.height, &width = shape.width;
  if (!has_tile(shape)) return {};
  const int64_t rows = product(shape.examples, shape.draws);
  const int64_t x_pitch =
      pixel_pitch(job.x, job.x_strides, rows, shape.inputs, height.inputs, width.inputs);
  const int64_t grad_pitch =
      pixel_pitch(job.grad, job.grad_strides, rows, shape.outputs, height.outputs, width.outputs);
  if (x_pitch == 0 || grad_pitch == 0) return {};
  ConvWeightGrad<typename Math::Scalar> found{};
  found.geometry = with_one_row(shape);
  found.x = {job.x, x_pitch};
  found.grad = {job.grad, grad_pitch};
  found.rows = all.weight;
  found.squares = all.squares;
  found.scales = all.scales;
  found.sum = all.weight_sum;
  found.bias = bias_of(all, 0);
  const bool possible = choose_tile<Math>(found.geometry, [&](auto tile) {
    using Tile = decltype(tile);
    found.band_pixels = band_pixels<Tile>(found.geometry, most_shared_bytes);
    if (!conv_counts_fit<Tile>(found)) return false;
    return conv_launch<Tile>(found).possible(most_shared_bytes);
  });
  if (!possible) return {};
  return found;
}

// The plain kernels.

constexpr int kWeightThreads = 128;

PRIVIMAGE_HOST_DEVICE int64_t weights_an_example(const ConvGeometry& shape) {
  return shape.groups * shape.outputs * shape.inputs * shape.height.taps * shape.width.taps;
}

PRIVIMAGE_HOST_DEVICE int64_t weight_blocks(const ConvGeometry& shape) {
  return (weights_an_example(shape) + kWeightThreads - 1) / kWeightThreads;
}

// One thread a weight; an example's blocks follow each other.
inline LaunchShape weight_launch(const ConvGeometry& shape) {
  return {product(shape.examples, weight_blocks(shape)), 1, kWeightThreads,
          kWeightThreads * int64_t{sizeof(double)}};
}

template <typename Scalar>
LaunchShape bias_launch(int64_t examples, int64_t channels) {
  constexpr int64_t kLanes = kBiasThreads / kBiasChannels;
  return {examples, bias_blocks(channels), kBiasThreads,
          kLanes * (kBiasChannels + 1) * int64_t{sizeof(Wide<Scalar>)}};
}

// The squares an example of the plain kernels: one a block.
template <typename Scalar>
PRIVIMAGE_HOST_DEVICE int64_t plain_slots(const WeightGradOnGpu<Scalar>& job) {
  const ConvGeometry& shape = job.layer.geometry;
  return weight_blocks(shape) + (job.with_bias ? bias_blocks(shape.groups * shape.outputs) : 0);
}

}  // namespace privimage::cuda
