// The shape of a two-dimensional convolution, and which pixel each tap of it reads.
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace privimage {

// Positions begin … end - 1.
struct Range {
  int64_t begin;
  int64_t end;
};

// A convolution along height or width.
struct ConvAxis {
  int64_t inputs;   // pixels of the input
  int64_t outputs;  // pixels of the output
  int64_t taps;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

// The input pixel that output pixel `output` reads through `tap`; outside the image in the padding.
PRIVIMAGE_HOST_DEVICE int64_t input_position(const ConvAxis& axis, int64_t output, int64_t tap) {
  return output * axis.stride + tap * axis.dilation - axis.padding;
}

// The output pixels that read inside the image through `tap`. They are consecutive, so a loop over
// them needs neither padding nor a test.
PRIVIMAGE_HOST_DEVICE Range inside(const ConvAxis& axis, int64_t tap) {
  const int64_t shift = axis.padding - tap * axis.dilation;
  const int64_t begin = shift > 0 ? (shift + axis.stride - 1) / axis.stride : 0;
  const int64_t reach = axis.inputs - 1 + shift;
  const int64_t last = reach >= 0 ? reach / axis.stride + 1 : 0;
  const int64_t end = last < axis.outputs ? last : axis.outputs;
  return {begin, end > begin ? end : begin};
}

struct ConvGeometry {
  int64_t examples;
  int64_t draws;  // rows an example, consecutive; they add up
  int64_t groups;
  int64_t inputs;   // channels a group
  int64_t outputs;  // channels a group
  ConvAxis height;
  ConvAxis width;
};

// Multiplications of the weight gradient of all examples, padding included.
PRIVIMAGE_HOST_DEVICE int64_t multiplications(const ConvGeometry& shape) {
  return shape.examples * shape.draws * shape.groups * shape.inputs * shape.outputs *
         shape.height.outputs * shape.width.outputs * shape.height.taps * shape.width.taps;
}

// Whether each example has one position, which reads one pixel.
PRIVIMAGE_HOST_DEVICE bool is_outer_product(const ConvGeometry& shape) {
  const auto is_one = [](const ConvAxis& axis) {
    return axis.inputs == 1 && axis.outputs == 1 && axis.taps == 1 && axis.padding == 0;
  };
  return shape.draws == 1 && shape.groups == 1 && is_one(shape.height) && is_one(shape.width);
}

}  // namespace privimage
