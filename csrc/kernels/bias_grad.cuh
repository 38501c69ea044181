// The gradient of a bias, example by example: sums of the output's gradient over an example's
// pixels, as functions of a block. Sums have an order that sizes alone decide.
#pragma once

#include "kernels/block.h"
#include "kernels/weight_grad.h"
#include "shared/grid.h"

namespace privimage::cuda {

// Keeps a channel's value, adds it to the sum of a job that has one, and returns what is kept.
template <typename Scalar>
PRIVIMAGE_DEVICE Wide<Scalar> keep_bias(const Block& block, const BiasGrad<Scalar>& job,
                                        int64_t example, int64_t channel, Wide<Scalar> value,
                                        double scale) {
  value = job.rows.keep(block, example, channel, value);
  if (job.sum != nullptr && scale != 0.0) {
    block.add(job.sum + channel, int64_t{grid_coordinate(value, scale)});
  }
  return value;
}

// The first threads have a channel each, from kBiasChannels * group on; all of their warp call it.
template <typename Scalar>
PRIVIMAGE_DEVICE void use_bias(const Block& block, const BiasGrad<Scalar>& job, int64_t example,
                               int64_t group, Wide<Scalar> value) {
  const int64_t channel = group * kBiasChannels + block.thread();
  const double scale = job.sum != nullptr ? job.scales[example] : 0.0;
  double squares = 0.0;
  if (channel < job.channels) {
    const double kept = keep_bias(block, job, example, channel, value, scale);
    squares = kept * kept;
  }
  if (job.squares.values == nullptr) return;
  for (int mask = 16; mask > 0; mask /= 2) squares += block.shuffle_xor(squares, mask);
  if (block.thread() == 0) job.squares.at(example, group) = squares;
}

// For a block of kBiasThreads threads, whatever the strides are. The 32 lanes of a channel take its
// pixels in turns.
template <typename Scalar>
PRIVIMAGE_DEVICE void bias_grad(const Block& block, const BiasGrad<Scalar>& job) {
  using Real = Wide<Scalar>;
  constexpr int kLanes = kBiasThreads / kBiasChannels;
  const ImageStrides& gs = job.strides;
  const int64_t example = block.x(), group = block.y();
  // Neighbouring threads read neighbouring values: channels, or pixels.
  const int fast = block.thread() % 32, slow = block.thread() / 32;
  const int column = gs.channel == 1 ? fast : slow, lane = gs.channel == 1 ? slow : fast;
  const int64_t channel = group * kBiasChannels + column;
  // An image without gaps is one row.
  const bool dense = gs.height == job.width * gs.width;
  const int64_t height = dense ? 1 : job.height;
  const int64_t width = dense ? job.height * job.width : job.width;
  Real sum = 0;
  for (int64_t draw = 0; draw < job.draws && channel < job.channels; ++draw) {
    const int64_t image = example * job.draws + draw;
    for (int64_t row = 0; row < height; ++row) {
      const Scalar* grad = job.grad + image * gs.row + channel * gs.channel + row * gs.height;
      for (int64_t x = lane; x < width; x += kLanes) sum += widen(grad[x * gs.width]);
    }
  }
  const Shared<Real> partials = block.template shared<Real>(0, kLanes * (kBiasChannels + 1));
  const int mine = lane * (kBiasChannels + 1) + column;
  partials.store(mine, sum);
  block.barrier();
  for (int half = kLanes / 2; half > 0; half /= 2) {
    if (lane < half) {
      partials.store(mine, partials.load(mine) + partials.load(mine + half * (kBiasChannels + 1)));
    }
    block.barrier();
  }
  if (block.warp() == 0) use_bias(block, job, example, group, partials.load(block.thread()));
}

}  // namespace privimage::cuda
