// torch.ops.privimage.example_weight_grad: checks, dispatches; writes into the caller's rows.
#include "cpu/example_weight_grad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "ops/check.h"

#ifdef PRIVIMAGE_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "kernels/example_weight_grad.h"
#include "ops/cuda_stream.h"
#endif

namespace privimage {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Multiplications that a thread must have to do to be worth waking it, and how many of them take as
// long as writing one weight.
constexpr int64_t kGrain = 1 << 20;
constexpr int64_t kWriting = 32;

// Sizes and distances as the schema has them; `geometry` is checked against the tensors.
struct Arguments {
  const Tensor& x;
  const Tensor& grad;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  ConvGeometry geometry;
  bool accumulate;
};

void check_axis(const ConvAxis& axis, const char* name) {
  STD_TORCH_CHECK(axis.taps > 0 && axis.stride > 0 && axis.padding >= 0 && axis.dilation > 0,
                  "geometry: expected positive taps, stride and dilation, padding from 0 on");
  const int64_t reach = axis.inputs + 2 * axis.padding - axis.dilation * (axis.taps - 1) - 1;
  const int64_t outputs = reach < 0 ? 0 : reach / axis.stride + 1;
  STD_TORCH_CHECK(axis.outputs == outputs, "grad: expected ", name, " ", outputs, ", got ",
                  axis.outputs);
}

ConvGeometry geometry_of(const Tensor& x, const Tensor& grad, const Tensor& weight,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4, "x, grad: expected 4 dimensions");
  STD_TORCH_CHECK(weight.dim() == 5, "weight: expected 5 dimensions, got ", weight.dim());
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "geometry: expected two numbers each");
  STD_TORCH_CHECK(groups > 0 && weight.size(1) % groups == 0, "groups: got ", groups);
  const int64_t examples = weight.size(0), rows = x.size(0);
  const ConvAxis height{x.size(2), grad.size(2), weight.size(3),
                        stride[0], padding[0],   dilation[0]};
  const ConvAxis width{x.size(3), grad.size(3), weight.size(4), stride[1], padding[1], dilation[1]};
  check_axis(height, "height");
  check_axis(width, "width");
  STD_TORCH_CHECK(examples == 0 ? rows == 0 : rows % examples == 0, "x: ", rows,
                  " rows do not fit ", examples, " examples");
  STD_TORCH_CHECK(grad.size(0) == rows, "grad: expected ", rows, " rows, got ", grad.size(0));
  STD_TORCH_CHECK(x.size(1) == groups * weight.size(2) && grad.size(1) == weight.size(1),
                  "weight: its channels are not those of x and grad");
  return {examples,
          examples == 0 ? 0 : rows / examples,
          groups,
          weight.size(2),
          weight.size(1) / groups,
          height,
          width};
}

// An example's values must lie in one piece; examples may lie apart.
void check_rows(const Tensor& tensor, const std::string& name) {
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

void check_like(const Tensor& tensor, const Tensor& x, const std::string& name) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, ": expected the type of x");
  STD_TORCH_CHECK(tensor.device() == x.device(), name, ": expected the device of x");
}

Arguments check(const Tensor& x, const Tensor& grad, const Tensor& weight,
                const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                int64_t groups, bool accumulate) {
  const ConvGeometry geometry = geometry_of(x, grad, weight, stride, padding, dilation, groups);
  check_like(grad, x, "grad");
  check_like(weight, x, "weight");
  check_rows(weight, "weight");
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 2 && bias->size(0) == weight.size(0) && bias->size(1) == weight.size(1),
        "bias: expected [examples, outputs]");
    check_like(*bias, x, "bias");
    check_rows(*bias, "bias");
  }
  return {x, grad, weight, bias, geometry, accumulate};
}

ImageStrides strides_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

template <typename Scalar>
ExampleWeightGrad<Scalar> describe(const Arguments& given) {
  return {given.geometry,
          static_cast<const Scalar*>(given.x.const_data_ptr()),
          strides_of(given.x),
          static_cast<const Scalar*>(given.grad.const_data_ptr()),
          strides_of(given.grad),
          static_cast<Scalar*>(given.weight.mutable_data_ptr()),
          given.weight.stride(0),
          given.bias ? static_cast<Scalar*>(given.bias->mutable_data_ptr()) : nullptr,
          given.bias ? given.bias->stride(0) : 0,
          given.accumulate};
}

// Calls run(job) with the job in the type of x.
template <typename Run>
void dispatch(const Arguments& given, Run run) {
  const ScalarType type = given.x.scalar_type();
  if (type == ScalarType::Float) {
    run(in_one_row(describe<float>(given)));
  } else if (type == ScalarType::Double) {
    run(in_one_row(describe<double>(given)));
  } else {
    STD_TORCH_CHECK(false, "x: expected float32 or float64");
  }
}

void example_weight_grad_cpu(const Tensor x, const Tensor grad, const Tensor weight,
                             const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                             const std::vector<int64_t> padding,
                             const std::vector<int64_t> dilation, int64_t groups, bool accumulate) {
  const Arguments given =
      check(x, grad, weight, bias, stride, padding, dilation, groups, accumulate);
  dispatch(given, [&](const auto& job) {
    const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
    const int64_t work = multiplications(job.geometry) + kWriting * given.weight.numel();
    const int64_t grain = kGrain / (work / (blocks + 1) + 1) + 1;
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      cpu::example_weight_grad(job, begin, end);
    });
  });
}

#ifdef PRIVIMAGE_CUDA
void example_weight_grad_cuda(const Tensor x, const Tensor grad, const Tensor weight,
                              const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                              const std::vector<int64_t> padding,
                              const std::vector<int64_t> dilation, int64_t groups,
                              bool accumulate) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Arguments given =
      check(x, grad, weight, bias, stride, padding, dilation, groups, accumulate);
  void* stream = current_cuda_stream(x.get_device_index());
  dispatch(given, [stream](const auto& job) {
    const int error = cuda::launch_example_weight_grad(job, stream);
    STD_TORCH_CHECK(error == 0, "example_weight_grad: CUDA error ", error);
  });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "example_weight_grad(Tensor x, Tensor grad, Tensor(a!) weight, Tensor(b!)? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool accumulate) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cuda));
}
#endif

}  // namespace privimage
