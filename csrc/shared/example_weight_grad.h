// The arguments of the per-example weight gradient, the same for CPU and CUDA.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"
#include "shared/conv_geometry.h"

namespace privimage {

// Distances, in values, between neighbours of an image batch [rows, channels, height, width].
struct ImageStrides {
  int64_t row;
  int64_t channel;
  int64_t height;
  int64_t width;
};

template <typename Scalar>
struct ExampleWeightGrad {
  ConvGeometry geometry;
  const Scalar* x;  // [examples * draws, groups * inputs, height, width], the layer's input
  ImageStrides x_strides;
  const Scalar* grad;  // [examples * draws, groups * outputs, height', width'], of its output
  ImageStrides grad_strides;
  Wide<Scalar>*
      weight;  // [examples, groups * outputs, inputs, taps, taps], an example's in one piece
  int64_t weight_stride;  // from one example to the next
  Wide<Scalar>* bias;     // [examples, groups * outputs], or null
  int64_t bias_stride;
  bool accumulate;  // add to what weight and bias hold, instead of writing over it
};

// The same job with all pixels of an example in one row, if its tensors allow it and each pixel is
// multiplied with itself alone: a 1x1 convolution or a linear layer.
template <typename Scalar>
PRIVIMAGE_HOST_DEVICE ExampleWeightGrad<Scalar> in_one_row(ExampleWeightGrad<Scalar> job) {
  ConvGeometry& shape = job.geometry;
  ConvAxis &height = shape.height, &width = shape.width;
  const bool alone = height.taps == 1 && width.taps == 1 && height.stride == 1 &&
                     width.stride == 1 && height.padding == 0 && width.padding == 0;
  const ImageStrides &x = job.x_strides, &grad = job.grad_strides;
  const bool rows = x.height == width.inputs * x.width && grad.height == width.inputs * grad.width;
  const bool draws = x.row == height.inputs * x.height && grad.row == height.inputs * grad.height;
  if (!alone || !rows || !draws) return job;
  const int64_t pixels = shape.draws * height.inputs * width.inputs;
  job.x_strides.row = x.row * shape.draws;
  job.grad_strides.row = grad.row * shape.draws;
  shape.draws = 1;
  height.inputs = height.outputs = 1;
  width.inputs = width.outputs = pixels;
  return job;
}

}  // namespace privimage
