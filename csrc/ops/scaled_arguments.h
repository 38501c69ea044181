// The arguments that the ops of a scaled sum share, checked: kept rows, scales, and the sum.
#pragma once

#include "ops/op.h"

namespace privimage {

// Gradients that are kept, [examples, parameters]; examples may lie apart.
inline void check_parts(const Tensor& parts) {
  check_shape(parts, "parts", {kAnySize, kAnySize});
  STD_TORCH_CHECK(parts.size(1) < 2 || parts.stride(1) == 1,
                  "parts: expected contiguous rows, got strides ", steps_of(parts));
}

inline const double* read_scales(const Tensor& scales, const Tensor& beside, int64_t examples) {
  check_type(scales, ScalarType::Double, "scales");
  check_shape(scales, "scales", {examples});
  check_contiguous(scales, "scales");
  check_device(scales, beside, "scales");
  return static_cast<const double*>(scales.const_data_ptr());
}

// So many integers, in any shape.
inline int64_t* sum_of(const Tensor& sum, int64_t count, const Tensor& beside,
                       const std::string& name) {
  check_type(sum, ScalarType::Long, name);
  check_contiguous(sum, name);
  STD_TORCH_CHECK(sum.numel() == count, name, ": expected ", count, " values, got ", sum.numel());
  check_device(sum, beside, name);
  return static_cast<int64_t*>(sum.mutable_data_ptr());
}

}  // namespace privimage
