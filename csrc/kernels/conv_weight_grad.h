// The per-example weight gradients of convolutions on a GPU, tile by tile, and their squared norms:
// arguments and launchers. The launcher of example_weight_grad sends it the layers that it takes.
#pragma once

#include <cstdint>

#include "kernels/weight_grad.h"
#include "shared/bfloat16.h"
#include "shared/conv_geometry.h"

namespace privimage {

// Images [examples, draws, height, width, pitch], of which a layer's channels are the first in each
// pixel; what lies behind them may be anything. Pixels are 16-byte aligned.
template <typename Scalar>
struct Pixels {
  const Scalar* data;
  int64_t pitch;  // in values
};

// A convolution of one group with side x side taps (side 1 or 3) and no dilation; a stride of 1 or
// 2 that is the same along both axes, or any for one tap. Any of the sizes may be 0.
template <typename Scalar>
struct ConvWeightGrad {
  ConvGeometry geometry;
  Pixels<Scalar> x;      // [examples, draws, height, width, inputs]
  Pixels<Scalar> grad;   // [examples, draws, height', width', outputs]
  GradRows<float> rows;  // [examples, outputs, inputs, side, side]; squares and sum are of them
  SquareSlots squares;
  const double* scales;   // [examples], see grid_scale; read where there is a sum
  int64_t* sum;           // [outputs, inputs, side, side] in grid steps, added to; or null
  BiasGrad<Scalar> bias;  // of the same grad, squared in the slots above; no channels for none
  int band_pixels;        // of the output that a stage in shared memory has room for
};

namespace cuda {

// Layers of as many examples each, in one launch.
template <typename Scalar>
struct ConvWeightGrads {
  int count;
  int64_t first_block[kMostLayers];  // of an example's
  ConvWeightGrad<Scalar> layers[kMostLayers];
};

// How float32 values are multiplied.
enum class Precision {
  kExact,  // fused multiply-add in float32
  kTf32,   // on tensor cores, after rounding to 11 bits
};

// The squares an example that a layer has: one a tile of output and input channels, the bias's
// among them.
int64_t conv_weight_grad_slots(const ConvWeightGrad<Bfloat16>& job);
int64_t conv_weight_grad_slots(const ConvWeightGrad<float>& job, Precision precision);

// Queues the kernel on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none: for
// `count` layers of as many examples each, at most kMostLayers; those of one tap that
// follow each other in one launch. All that is asked for, rows, squares and sum, comes from
// the same values, bit by bit the same in every combination. Allocates, synchronises and throws
// nothing.
int launch_conv_weight_grads(const ConvWeightGrad<Bfloat16>* layers, int count, void* stream);
int launch_conv_weight_grads(const ConvWeightGrad<float>* layers, int count, Precision precision,
                             void* stream);

}  // namespace cuda
}  // namespace privimage
