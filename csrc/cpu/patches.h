// A convolution of few input channels as a product with patches: all that an output position reads,
// side by side, in place of input channels that would fill a small part of a vector each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/packed_images.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// Input channels of which patches are made, output channels that make up for it, and the most
// values of an example's patches.
constexpr int64_t kFewInputs = 4;
constexpr int64_t kManyOutputs = 8;
constexpr int64_t kMostPatches = 1 << 21;

// The geometry with patches in place of the input, where that is worth while: their values, an
// input's taps side by side, are input channels of a 1x1 convolution. Its weights lie in memory as
// those of the convolution do.
inline ConvGeometry with_patches(const ConvGeometry& shape) {
  const ConvAxis &height = shape.height, &width = shape.width;
  const int64_t taps = height.taps * width.taps, values = shape.inputs * taps;
  const int64_t positions = shape.draws * height.outputs * width.outputs;
  const bool is_worth_it = taps > 1 && shape.inputs <= kFewInputs &&
                           shape.outputs >= kManyOutputs && positions * values <= kMostPatches;
  if (!is_worth_it) return shape;
  ConvGeometry patched = shape;
  patched.inputs = values;
  patched.height = {height.outputs, height.outputs, 1, 1, 0, 1};
  patched.width = {width.outputs, width.outputs, 1, 1, 0, 1};
  return patched;
}

// Makes the patches of an example's images.
template <typename Scalar>
class Patches {
 public:
  explicit Patches(const ConvGeometry& shape)
      : shape_(shape), height_(reach(shape.height)), width_(reach(shape.width)) {
    static thread_local Scratch<Scalar> scratch;
    plane_ = scratch.at_least(shape.inputs * height_ * width_);
    static thread_local Scratch<int64_t> places;
    places_ = places.at_least(shape.inputs * shape.height.taps * shape.width.taps);
    int64_t* to = places_;
    for (int64_t c = 0; c < shape.inputs; ++c) {
      for (int64_t h = 0; h < shape.height.taps; ++h) {
        for (int64_t w = 0; w < shape.width.taps; ++w) {
          *to++ = (c * height_ + h * shape.height.dilation) * width_ + w * shape.width.dilation;
        }
      }
    }
  }

  // Writes to [passes, draws, height', width', pitch] the values of patches, zeros behind the last;
  // the last pass is as narrow as `padded` values leave it.
  void pack(const Images<Scalar>& x, int64_t padded, int64_t pitch, Scalar* to) {
    const ConvAxis &height = shape_.height, &width = shape_.width;
    const int64_t values = shape_.inputs * height.taps * width.taps;
    const int64_t positions = height.outputs * width.outputs;
    for (int64_t draw = 0; draw < shape_.draws; ++draw) {
      frame(x, draw);
      for (int64_t first = 0; first < padded; first += pitch) {
        const int64_t columns = std::min(pitch, padded - first);
        const int64_t count = std::min(columns, values - first);
        Scalar* patch = to + shape_.draws * positions * first + draw * positions * columns;
        for (int64_t h = 0; h < height.outputs; ++h) {
          const Scalar* from = plane_ + h * height.stride * width_;
          for (int64_t w = 0; w < width.outputs; ++w, from += width.stride, patch += columns) {
            for (int64_t i = 0; i < count; ++i) patch[i] = from[places_[first + i]];
            std::fill(patch + count, patch + columns, Scalar(0));
          }
        }
      }
    }
  }

 private:
  // Pixels that are read along an axis, the first tap's padding included.
  static int64_t reach(const ConvAxis& axis) {
    return std::max<int64_t>(axis.outputs - 1, 0) * axis.stride + (axis.taps - 1) * axis.dilation +
           1;
  }

  // Copies what is read of an image, zeros around it.
  void frame(const Images<Scalar>& x, int64_t draw) {
    const int64_t top = shape_.height.padding, left = shape_.width.padding;
    const int64_t begin = std::min(left, width_);
    const int64_t end = std::clamp(left + x.columns, begin, width_);
    Scalar* to = plane_;
    for (int64_t c = 0; c < shape_.inputs; ++c) {
      for (int64_t row = -top; row < height_ - top; ++row, to += width_) {
        const bool inside = row >= 0 && row < x.rows;
        std::fill(to, inside ? to + begin : to + width_, Scalar(0));
        if (!inside) continue;
        const Scalar* from = x.at(draw, row, 0) + c * x.strides.channel;
        for (int64_t i = begin; i < end; ++i) to[i] = from[(i - left) * x.strides.width];
        std::fill(to + end, to + width_, Scalar(0));
      }
    }
  }

  const ConvGeometry& shape_;
  const int64_t height_, width_;  // of a plane
  Scalar* plane_;                 // [inputs, height, width], of one image
  int64_t* places_;               // of a patch's values, from its first
};

}  // namespace privimage::cpu
