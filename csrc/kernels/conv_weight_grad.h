// The per-example weight gradient of a convolution on a GPU, and its squared norm: arguments and
// launcher.
//
// This is device code without an op of its own: the launcher of example_weight_grad sends it the
// shapes that tensor cores do well, bfloat16 channels-last with stride 1.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"

namespace privimage {

// A convolution with stride 1 and side x side taps (side 1 or 3), padded by side / 2, so that its
// output is as large as its input. Any of the sizes may be 0.
struct ConvWeightGrad {
  const Bfloat16* input;        // [examples, draws, height, width, in_channels], 16-byte aligned
  const Bfloat16* output_grad;  // [examples, draws, height, width, out_channels], likewise
  float* parts;     // [examples, part_stride], a row [out_channels, side, side, in_channels]
  double* squares;  // [examples, slots]: their sum over the slots is a part's squared norm
  int64_t examples;
  int64_t draws;
  int64_t height;
  int64_t width;
  int64_t in_channels;
  int64_t out_channels;
  int64_t part_stride;
};

namespace cuda {

// The squares an example that the launcher writes: one a tile of output and input channels.
int64_t conv_weight_grad_slots(const ConvWeightGrad& job, int side);

// Queues the kernel on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none. With
// `store` the parts are written too; without, `parts` is not looked at. Both give the same squares,
// bit by bit. Allocates, synchronises and throws nothing.
int launch_conv_weight_grad(const ConvWeightGrad& job, int side, bool store, void* stream);

}  // namespace cuda
}  // namespace privimage
