// The arguments of group normalisation, with or without SiLU, the same for CPU and CUDA.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"

namespace privimage {

struct GroupNormShape {
  int64_t examples;
  int64_t draws;  // rows an example, consecutive; their weight and bias gradients add up
  int64_t channels;
  int64_t pixels;
  int64_t groups;
  bool channels_last;  // a row is [pixels, channels], else [channels, pixels]
  bool silu;           // x * sigmoid(x) on top
};

// Statistics, weights and their gradients of bfloat16 activations are float32.
template <typename Scalar>
struct GroupNormSilu {
  GroupNormShape shape;
  const Scalar* x;             // [rows, …]
  const Wide<Scalar>* weight;  // [channels], or null for ones
  const Wide<Scalar>* bias;    // [channels], or null for zeros
  Scalar* y;                   // as x
  Wide<Scalar>* mean;          // [rows, groups]
  Wide<Scalar>* rstd;          // [rows, groups], 1 / standard deviation
  double eps;
};

template <typename Scalar>
struct GroupNormSiluBackward {
  GroupNormShape shape;
  const Scalar* grad;          // as x, of the output
  const Scalar* x;             // [rows, …]
  const Wide<Scalar>* mean;    // [rows, groups]
  const Wide<Scalar>* rstd;    // [rows, groups]
  const Wide<Scalar>* weight;  // [channels], or null for ones
  const Wide<Scalar>* bias;    // [channels], or null for zeros
  Scalar* grad_x;              // as x
  Wide<Scalar>* grad_weight;   // [examples, channels], or null
  int64_t weight_stride;
  Wide<Scalar>* grad_bias;  // [examples, channels], or null
  int64_t bias_stride;
  bool accumulate;  // add to what grad_weight and grad_bias hold
};

}  // namespace privimage
