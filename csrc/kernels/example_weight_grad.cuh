// The plain kernels of the per-example weight gradient, as functions of a block: any strides, taps
// and groups; what the tiled kernel does not take, and the bias.
#pragma once

#include "kernels/block.h"
#include "kernels/weight_grad_route.h"
#include "shared/example_weight_grad.h"

namespace privimage::cuda {

template <typename Scalar>
PRIVIMAGE_DEVICE void put(const ExampleWeightGrad<Scalar>& job, Wide<Scalar>* to,
                          Wide<Scalar> sum) {
  *to = job.accumulate ? *to + sum : sum;
}

// Neighbouring threads share the pixels of grad and read neighbouring channels of x, so that most
// loads hit the cache.
template <typename Scalar>
PRIVIMAGE_DEVICE void plain_weight_grad(const Block& block, const ExampleWeightGrad<Scalar>& job) {
  const ConvGeometry& shape = job.geometry;
  const ImageStrides &xs = job.x_strides, &gs = job.grad_strides;
  const int64_t taps = shape.height.taps * shape.width.taps, weights = weights_an_example(shape);
  const int64_t blocks = (weights + kWeightThreads - 1) / kWeightThreads;
  const int64_t example = block.x() / blocks;
  const int64_t i = block.x() % blocks * kWeightThreads + block.thread();
  if (i >= weights) return;
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
  put(job, job.weight + example * job.weight_stride + (output * shape.inputs + input) * taps + tap,
      sum);
}

// Grid: examples, blocks of 32 channels. The lanes of a channel take its pixels in turns; the tree
// below adds the lanes in a fixed order.
template <typename Scalar>
PRIVIMAGE_DEVICE void bias_grad(const Block& block, const ExampleWeightGrad<Scalar>& job) {
  using Real = Wide<Scalar>;
  const ConvGeometry& shape = job.geometry;
  const ImageStrides& gs = job.grad_strides;
  const int64_t outputs = shape.groups * shape.outputs;
  // Neighbouring threads read neighbouring values: channels, or pixels.
  const int fast = block.thread() % 32, slow = block.thread() / 32;
  const int column = gs.channel == 1 ? fast : slow, lane = gs.channel == 1 ? slow : fast;
  const int64_t output = block.y() * kBiasChannels + column;
  // An image without gaps is one row.
  const bool dense = gs.height == shape.width.outputs * gs.width;
  const int64_t height = dense ? 1 : shape.height.outputs;
  const int64_t width = dense ? shape.height.outputs * shape.width.outputs : shape.width.outputs;
  Real sum = 0;
  for (int64_t draw = 0; draw < shape.draws && output < outputs; ++draw) {
    const int64_t image = block.x() * shape.draws + draw;
    for (int64_t row = 0; row < height; ++row) {
      const Scalar* grad = job.grad + image * gs.row + output * gs.channel + row * gs.height;
      for (int64_t x = lane; x < width; x += kBiasLanes) sum += widen(grad[x * gs.width]);
    }
  }
  const Shared<Real> partials = block.template shared<Real>(0, kBiasLanes * (kBiasChannels + 1));
  const int mine = lane * (kBiasChannels + 1) + column;
  partials.store(mine, sum);
  block.barrier();
  for (int half = kBiasLanes / 2; half > 0; half /= 2) {
    if (lane < half) {
      partials.store(mine, partials.load(mine) + partials.load(mine + half * (kBiasChannels + 1)));
    }
    block.barrier();
  }
  if (lane == 0 && output < outputs) {
    put(job, job.bias + block.x() * job.bias_stride + output, partials.load(mine));
  }
}

}  // namespace privimage::cuda
