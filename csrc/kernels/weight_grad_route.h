// Which kernel computes a layer's weight gradient: the tiled one where it can, the plain one for
// the rest; and the grids of the plain ones. Arithmetic of the host.
#pragma once

#include <optional>

#include "kernels/conv_tile.h"
#include "kernels/weight_grad.h"
#include "shared/example_weight_grad.h"

namespace privimage::cuda {

// Whether rows lie one behind the other, each [height, width, channels].
inline bool is_channels_last(const ImageStrides& strides, int64_t rows, int64_t channels,
                             int64_t height, int64_t width) {
  const auto fits = [](int64_t size, int64_t stride, int64_t expected) {
    return size <= 1 || stride == expected;
  };
  return fits(channels, strides.channel, 1) && fits(width, strides.width, channels) &&
         fits(height, strides.height, width * channels) &&
         fits(rows, strides.row, height * width * channels);
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

// The job of the tiled kernel, or nothing: other types, strides, taps, groups, and sizes that it
// can't count or whose tiles need more shared memory than a block has here, are for the plain one.
template <typename Math>
std::optional<ConvWeightGrad<typename Math::Scalar>> tiled(
    const WeightGradOnGpu<typename Math::Scalar>& all,
    int64_t most_shared_bytes = kMostSharedBytes) {
  const ExampleWeightGrad<typename Math::Scalar>& job = all.layer;
  const ConvGeometry& shape = job.geometry;
  const ConvAxis &height = shape.height, &width = shape.width;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  if (!has_tile(shape) || !aligned(job.x) || !aligned(job.grad)) return {};
  const int64_t rows = product(shape.examples, shape.draws);
  if (!is_channels_last(job.x_strides, rows, shape.inputs, height.inputs, width.inputs) ||
      !is_channels_last(job.grad_strides, rows, shape.outputs, height.outputs, width.outputs)) {
    return {};
  }
  const ConvGeometry seen = with_one_row(shape);
  const bool possible = choose_tile<Math>(seen, [&](auto tile) {
    using Tile = decltype(tile);
    if (!conv_counts_fit<Tile>(seen)) return false;
    return conv_launch<Tile>(seen).possible(most_shared_bytes);
  });
  if (!possible) return {};
  return ConvWeightGrad<typename Math::Scalar>{
      seen, job.x, job.grad, all.weight, all.squares, all.scales, all.weight_sum, bias_of(all, 0)};
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
