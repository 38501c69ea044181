// The arguments that the ops of a convolution's weight gradient share: checked, and as structs.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "ops/check.h"
#include "shared/example_weight_grad.h"

#ifdef PRIVIMAGE_CUDA
#include <torch/csrc/stable/ops.h>

#include "kernels/weight_grad_route.h"
#endif

namespace privimage {

// What the schema says of a convolution besides its tensors.
struct ConvNumbers {
  std::vector<int64_t> taps, stride, padding, dilation;
  int64_t groups;
};

inline void check_examples(int64_t examples) {
  STD_TORCH_CHECK(examples >= 0, "examples: expected no negative number, got ", examples);
}

inline void check_axis(const ConvAxis& axis, const char* name) {
  STD_TORCH_CHECK(axis.taps > 0 && axis.stride > 0 && axis.padding >= 0 && axis.dilation > 0,
                  "geometry: expected positive taps, stride and dilation, padding from 0 on");
  const int64_t reach = axis.inputs + 2 * axis.padding - axis.dilation * (axis.taps - 1) - 1;
  const int64_t outputs = reach < 0 ? 0 : reach / axis.stride + 1;
  STD_TORCH_CHECK(axis.outputs == outputs, "grad: expected ", name, " ", outputs, ", got ",
                  axis.outputs);
}

// From x [rows, groups * inputs, height, width] and grad [rows, groups * outputs, height', width'],
// which must be of one type and on one device.
inline ConvGeometry geometry_of(const torch::stable::Tensor& x, const torch::stable::Tensor& grad,
                                int64_t examples, const ConvNumbers& conv) {
  check_shape(x, "x", {kAnySize, kAnySize, kAnySize, kAnySize});
  check_shape(grad, "grad", {kAnySize, kAnySize, kAnySize, kAnySize});
  STD_TORCH_CHECK(conv.taps.size() == 2 && conv.stride.size() == 2 && conv.padding.size() == 2 &&
                      conv.dilation.size() == 2,
                  "geometry: expected two numbers each");
  STD_TORCH_CHECK(
      conv.groups > 0 && grad.size(1) % conv.groups == 0 && x.size(1) % conv.groups == 0,
      "groups: ", conv.groups, " do not fit ", x.size(1), " and ", grad.size(1), " channels");
  const int64_t rows = x.size(0);
  const auto axis = [&](int64_t i) {
    return ConvAxis{x.size(2 + i),  grad.size(2 + i), conv.taps[i],
                    conv.stride[i], conv.padding[i],  conv.dilation[i]};
  };
  check_axis(axis(0), "height");
  check_axis(axis(1), "width");
  STD_TORCH_CHECK(examples > 0 ? rows % examples == 0 : examples == 0 && rows == 0, "x: ", rows,
                  " rows do not fit ", examples, " examples");
  STD_TORCH_CHECK(grad.size(0) == rows, "grad: expected ", rows, " rows, got ", grad.size(0));
  check_beside(grad, x.scalar_type(), x, "grad");
  return {examples,
          examples == 0 ? 0 : rows / examples,
          conv.groups,
          x.size(1) / conv.groups,
          grad.size(1) / conv.groups,
          axis(0),
          axis(1)};
}

inline ImageStrides strides_of(const torch::stable::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

#ifdef PRIVIMAGE_CUDA
// The images as the tiled kernel takes them: themselves, or a copy with channels last and pixels
// 16-byte aligned. Three channels are copied, and so is what has its channels first; that is far
// less work than without a tile.
template <typename Scalar>
torch::stable::Tensor for_tiles(const torch::stable::Tensor& images, const ConvGeometry& shape) {
  const int64_t rows = images.size(0), channels = images.size(1);
  const int64_t height = images.size(2), width = images.size(3);
  if (sizeof(Scalar) > 4 || images.numel() == 0 || !cuda::has_tile(shape)) return images;
  const auto* data = static_cast<const Scalar*>(images.const_data_ptr());
  if (cuda::pixel_pitch(data, strides_of(images), rows, channels, height, width) > 0) return images;
  constexpr int64_t kVector = 16 / sizeof(Scalar);
  const int64_t pitch = cuda::blocks_for(channels, kVector) * kVector;
  using namespace torch::stable;
  // Zeros behind the channels, which the kernel of the bias loads along with them.
  Tensor whole = pitch == channels ? new_empty(images, {rows, height, width, pitch})
                                   : new_zeros(images, {rows, height, width, pitch});
  Tensor pixels = transpose(transpose(narrow(whole, 3, 0, channels), 1, 3), 2, 3);
  copy_(pixels, images);
  return pixels;
}
#endif

}  // namespace privimage
