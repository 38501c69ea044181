// What a GPU makes of the gradients of a layer's weight and bias: rows, norms, or a scaled sum. The
// arguments that its kernels share.
#pragma once

#include <cstdint>

#include "kernels/grad_rows.h"
#include "shared/bfloat16.h"
#include "shared/conv_geometry.h"
#include "shared/example_weight_grad.h"

namespace privimage {

// Where squares go that add up to an example's squared norm: a row of slots an example, of which
// each writer has some.
struct SquareSlots {
  double* values;  // [examples, count], or null
  int64_t count;
  int64_t first;  // of a writer's

  PRIVIMAGE_HOST_DEVICE double& at(int64_t example, int64_t slot) const {
    return values[example * count + first + slot];
  }
  // Those behind the first so many.
  PRIVIMAGE_HOST_DEVICE SquareSlots behind(int64_t slots) const {
    return {values, count, first + slots};
  }
};

// Any of rows, squares and sum is asked for; all come from the same values, bit by bit the same in
// every combination.
template <typename Scalar>
struct BiasGrad {
  const Scalar* grad;  // [examples * draws, channels, height, width]
  ImageStrides strides;
  int64_t draws, channels, height, width;
  GradRows<Wide<Scalar>> rows;  // [examples, channels]
  SquareSlots squares;
  const double* scales;  // [examples], see grid_scale; read where there is a sum
  int64_t* sum;          // [channels] in grid steps, added to; or null
};

// The per-example weight gradient with all that can be made of it.
template <typename Scalar>
struct WeightGradOnGpu {
  ExampleWeightGrad<Scalar> layer;  // but for its own rows, which are not looked at
  GradRows<Wide<Scalar>> weight;    // [examples, outputs, inputs, taps, taps]
  GradRows<Wide<Scalar>> bias;      // [examples, outputs]
  bool with_bias;                   // whether there is a bias
  SquareSlots squares;              // weight_grad_slots(…) of them are the layer's
  const double* scales;             // [examples], see grid_scale; read where there is a sum
  int64_t* weight_sum;  // [outputs, inputs, taps, taps] in grid steps, added to; or null
  int64_t* bias_sum;    // [outputs], likewise; where there is weight_sum and a bias
};

namespace cuda {

// Layers that one launch takes at most: the projections q, k, v and o of an attention block.
constexpr int kMostLayers = 4;

constexpr int kBiasChannels = 32;  // of a block
constexpr int kBiasThreads = 32 * kBiasChannels;

PRIVIMAGE_HOST_DEVICE int64_t bias_blocks(int64_t channels) {
  return (channels + kBiasChannels - 1) / kBiasChannels;
}

}  // namespace cuda
}  // namespace privimage
