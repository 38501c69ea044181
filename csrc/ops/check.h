// Sentences for arguments that an op can't take. The Python functions check first and say more;
// these guard against calls of torch.ops.privimage that go around them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace privimage {

inline void check_positive(double value, const std::string& name) {
  STD_TORCH_CHECK(value > 0.0 && value < 1e300, name, ": expected a finite number above 0, got ",
                  value);
}

// Of sums over a tensor's values, and of what stands beside them: weights, statistics, gradients.
inline torch::headeronly::ScalarType wide_type(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::BFloat16 ? ScalarType::Float : type;
}

inline void check_beside(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type,
                         const torch::stable::Tensor& x, const std::string& name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name,
                  ": expected the type of x, or float32 beside bfloat16");
  STD_TORCH_CHECK(tensor.device() == x.device(), name, ": expected the device of x");
}

// An example's values must lie in one piece; examples may lie apart.
inline void check_rows(const torch::stable::Tensor& tensor, const std::string& name) {
  if (tensor.numel() == 0) return;
  int64_t expected = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; --dim) {
    STD_TORCH_CHECK(tensor.size(dim) <= 1 || tensor.stride(dim) == expected, name,
                    ": expected each example's values in one piece");
    expected *= tensor.size(dim);
  }
  STD_TORCH_CHECK(tensor.size(0) <= 1 || tensor.stride(0) >= expected, name,
                  ": expected rows that do not overlap");
}

}  // namespace privimage
