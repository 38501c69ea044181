// Sentences for arguments that an op can't take. The Python functions check first and say more;
// these guard against calls of torch.ops.privimage that go around them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <string>

namespace privimage {

inline void check_positive(double value, const std::string& name) {
  STD_TORCH_CHECK(value > 0.0 && value < 1e300, name, ": expected a finite number above 0, got ",
                  value);
}

// Of any length.
constexpr int64_t kAnySize = -1;

// "[2, *, 3]", with * for any size.
template <typename Size>
std::string in_brackets(int64_t dims, Size size) {
  std::string text = "[";
  for (int64_t dim = 0; dim < dims; ++dim) {
    const int64_t found = size(dim);
    text += (dim > 0 ? ", " : "") + (found == kAnySize ? "*" : std::to_string(found));
  }
  return text + "]";
}

inline std::string sizes_of(const torch::stable::Tensor& tensor) {
  return in_brackets(tensor.dim(), [&](int64_t dim) { return tensor.size(dim); });
}

inline void check_shape(const torch::stable::Tensor& tensor, const std::string& name,
                        std::initializer_list<int64_t> expected) {
  const int64_t dims = static_cast<int64_t>(expected.size());
  const int64_t* sizes = expected.begin();
  bool fits = tensor.dim() == dims;
  for (int64_t dim = 0; fits && dim < dims; ++dim) {
    fits = sizes[dim] == kAnySize || sizes[dim] == tensor.size(dim);
  }
  STD_TORCH_CHECK(fits, name, ": expected ",
                  in_brackets(dims, [&](int64_t dim) { return sizes[dim]; }), ", got ",
                  sizes_of(tensor));
}

inline std::string steps_of(const torch::stable::Tensor& tensor) {
  return in_brackets(tensor.dim(), [&](int64_t dim) { return tensor.stride(dim); });
}

inline void check_contiguous(const torch::stable::Tensor& tensor, const std::string& name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor, got strides ",
                  steps_of(tensor));
}

inline void check_type(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type,
                       const std::string& name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ",
                  torch::headeronly::toString(type), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void refuse_type(const torch::stable::Tensor& tensor, const std::string& name) {
  STD_TORCH_CHECK(false, name, ": expected Float or Double, got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

// "cpu", "cuda:1"; what else there is has no kernels here.
inline std::string device_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::DeviceType;
  const auto device = tensor.device();
  if (device.type() == DeviceType::CPU) return "cpu";
  if (device.type() == DeviceType::CUDA) return "cuda:" + std::to_string(device.index());
  return device.type() == DeviceType::Meta ? "meta" : "a device of another kind";
}

// Pointers are read only after these two: an op's kernels run where the tensor is that it goes by,
// and all others are there, too.
inline void check_runs_on(torch::headeronly::DeviceType type, const torch::stable::Tensor& tensor,
                          const std::string& name) {
  if (tensor.device().type() == type) return;
  const bool on_cpu = type == torch::headeronly::DeviceType::CPU;
  STD_TORCH_CHECK(false, name, ": expected a tensor on ", on_cpu ? "cpu" : "cuda", ", got one on ",
                  device_of(tensor));
}

inline void check_device(const torch::stable::Tensor& tensor, const torch::stable::Tensor& beside,
                         const std::string& name) {
  if (tensor.device() == beside.device()) return;
  STD_TORCH_CHECK(false, name, ": expected a tensor on ", device_of(beside), ", got one on ",
                  device_of(tensor));
}

// Of sums over a tensor's values, and of what stands beside them: weights, statistics, gradients.
inline torch::headeronly::ScalarType wide_type(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::BFloat16 ? ScalarType::Float : type;
}

inline void check_beside(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type,
                         const torch::stable::Tensor& x, const std::string& name) {
  check_type(tensor, type, name);
  check_device(tensor, x, name);
}

// Rows of gradients are as wide as sums over x; on a GPU bfloat16 does for float32.
inline void check_kept_beside(const torch::stable::Tensor& rows, const torch::stable::Tensor& x,
                              const std::string& name) {
  using torch::headeronly::ScalarType;
  const ScalarType wide = wide_type(x), found = rows.scalar_type();
  const bool half = x.is_cuda() && wide == ScalarType::Float && found == ScalarType::BFloat16;
  check_beside(rows, half ? found : wide, x, name);
}

// An example's values must lie in one piece; examples may lie apart.
inline void check_rows(const torch::stable::Tensor& tensor, const std::string& name) {
  if (tensor.numel() == 0) return;
  int64_t expected = 1;
  for (int64_t dim = tensor.dim() - 1; dim > 0; --dim) {
    STD_TORCH_CHECK(tensor.size(dim) <= 1 || tensor.stride(dim) == expected, name,
                    ": expected each example's values in one piece, got strides ",
                    steps_of(tensor));
    expected *= tensor.size(dim);
  }
  STD_TORCH_CHECK(tensor.size(0) <= 1 || tensor.stride(0) >= expected, name,
                  ": expected rows that do not overlap, got strides ", steps_of(tensor));
}

}  // namespace privimage
