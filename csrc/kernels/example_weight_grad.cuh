// The plain kernel of the per-example weight gradient, as a function of a block: any strides, taps
// and groups; what the tiled kernel does not take.
#pragma once

#include "kernels/add_up.cuh"
#include "kernels/block.h"
#include "kernels/weight_grad_route.h"
#include "shared/example_weight_grad.h"
#include "shared/grid.h"

namespace privimage::cuda {

// Neighbouring threads share the pixels of grad and read neighbouring channels of x, so that most
// loads hit the cache.
template <typename Scalar>
PRIVIMAGE_DEVICE Wide<Scalar> plain_weight(const ExampleWeightGrad<Scalar>& job, int64_t example,
                                           int64_t i) {
  const ConvGeometry& shape = job.geometry;
  const ImageStrides &xs = job.x_strides, &gs = job.grad_strides;
  const int64_t taps = shape.height.taps * shape.width.taps;
  const int64_t input = i % shape.inputs;
  const int64_t tap = i / shape.inputs % taps;
  const int64_t output = i / shape.inputs / taps;
  const int64_t h = tap / shape.width.taps, w = tap % shape.width.taps;
  const Range rows = inside(shape.height, h), columns = inside(shape.width, w);
  const int64_t channel = output / shape.outputs * shape.inputs + input;
  Wide<Scalar> sum = 0;
  for (int64_t draw = 0; draw < shape.draws; ++draw) {
    const int64_t image = example * shape.draws + draw;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const Scalar* x = job.x + image * xs.row + channel * xs.channel +
                        input_position(shape.height, row, h) * xs.height +
                        input_position(shape.width, columns.begin, w) * xs.width;
      const Scalar* grad = job.grad + image * gs.row + output * gs.channel + row * gs.height +
                           columns.begin * gs.width;
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        sum += widen(*x) * widen(*grad);
        x += shape.width.stride * xs.width;
        grad += gs.width;
      }
    }
  }
  return sum;
}

template <typename Scalar>
PRIVIMAGE_DEVICE void plain_weight_grad(const Block& block, const WeightGradOnGpu<Scalar>& job) {
  const ConvGeometry& shape = job.layer.geometry;
  const int64_t taps = shape.height.taps * shape.width.taps, weights = weights_an_example(shape);
  const int64_t blocks = weight_blocks(shape), example = block.x() / blocks;
  const int64_t slot = block.x() % blocks, i = slot * kWeightThreads + block.thread();
  Wide<Scalar> value = 0;
  if (i < weights) {
    value = plain_weight(job.layer, example, i);
    // Of [outputs, inputs, taps], where i counts the inputs fastest.
    const int64_t row = i / (shape.inputs * taps) * shape.inputs + i % shape.inputs;
    const int64_t place = row * taps + i / shape.inputs % taps;
    value = job.weight.keep(block, example, place, value);
    if (job.weight_sum != nullptr && job.scales[example] != 0.0) {
      block.add(job.weight_sum + place, int64_t{grid_coordinate(value, job.scales[example])});
    }
  }
  if (job.squares.values == nullptr) return;
  const double sum = add_threads(block, double(value) * double(value), kWeightThreads, 0);
  if (block.thread() == 0) job.squares.at(example, slot) = sum;
}

}  // namespace privimage::cuda
