// torch.ops.privimage.example_weight_grad and measured_weight_grad: check, dispatch; write into the
// caller's rows.
#include "cpu/example_weight_grad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "cpu/scaled_sum.h"
#include "ops/check.h"
#include "ops/conv_arguments.h"

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

Arguments check(const Tensor& x, const Tensor& grad, const Tensor& weight,
                const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                int64_t groups, bool accumulate) {
  STD_TORCH_CHECK(weight.dim() == 5, "weight: expected 5 dimensions, got ", weight.dim());
  const ConvNumbers conv{{weight.size(3), weight.size(4)}, stride, padding, dilation, groups};
  const ConvGeometry geometry = geometry_of(x, grad, weight.size(0), conv);
  STD_TORCH_CHECK(geometry.inputs == weight.size(2) && grad.size(1) == weight.size(1),
                  "weight: its channels are not those of x and grad");
  check_beside(grad, x.scalar_type(), x, "grad");
  check_beside(weight, wide_type(x), x, "weight");
  check_rows(weight, "weight");
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 2 && bias->size(0) == weight.size(0) && bias->size(1) == weight.size(1),
        "bias: expected [examples, outputs]");
    check_beside(*bias, wide_type(x), x, "bias");
    check_rows(*bias, "bias");
  }
  return {x, grad, weight, bias, geometry, accumulate};
}

template <typename Scalar>
ExampleWeightGrad<Scalar> describe(const Arguments& given) {
  return {given.geometry,
          static_cast<const Scalar*>(given.x.const_data_ptr()),
          strides_of(given.x),
          static_cast<const Scalar*>(given.grad.const_data_ptr()),
          strides_of(given.grad),
          static_cast<Wide<Scalar>*>(given.weight.mutable_data_ptr()),
          given.weight.stride(0),
          given.bias ? static_cast<Wide<Scalar>*>(given.bias->mutable_data_ptr()) : nullptr,
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

// Calls run(begin, end) on all threads for ranges of the job's blocks, which write so many values.
template <typename Run>
void for_blocks(const ConvGeometry& shape, int64_t values, Run run) {
  const int64_t blocks = cpu::example_weight_grad_blocks(shape);
  const int64_t work = multiplications(shape) + kWriting * values;
  torch::stable::parallel_for(0, blocks, kGrain / (work / (blocks + 1) + 1) + 1, run);
}

void example_weight_grad_cpu(const Tensor x, const Tensor grad, const Tensor weight,
                             const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                             const std::vector<int64_t> padding,
                             const std::vector<int64_t> dilation, int64_t groups, bool accumulate) {
  const Arguments given =
      check(x, grad, weight, bias, stride, padding, dilation, groups, accumulate);
  dispatch(given, [&](const auto& job) {
    for_blocks(job.geometry, given.weight.numel(),
               [&](int64_t begin, int64_t end) { cpu::example_weight_grad(job, begin, end); });
  });
}

Tensor measured_weight_grad_cpu(const Tensor x, const Tensor grad, const Tensor weight,
                                const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                                const std::vector<int64_t> padding,
                                const std::vector<int64_t> dilation, int64_t groups) {
  const Arguments given = check(x, grad, weight, bias, stride, padding, dilation, groups, false);
  Tensor squares = torch::stable::new_empty(x, {weight.size(0)}, ScalarType::Double);
  dispatch(given, [&](const auto& job) {
    const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
    std::vector<double> of_blocks(blocks);
    for_blocks(job.geometry, weight.numel(), [&](int64_t begin, int64_t end) {
      cpu::measured_weight_grad(job, of_blocks.data(), begin, end);
    });
    cpu::add_blocks(of_blocks.data(), blocks, weight.size(0),
                    static_cast<double*>(squares.mutable_data_ptr()));
  });
  return squares;
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
  const auto run = [stream](const auto& job) {
    const int error = cuda::launch_example_weight_grad(job, stream);
    STD_TORCH_CHECK(error == 0, "example_weight_grad: CUDA error ", error);
  };
  if (x.scalar_type() == ScalarType::BFloat16) {
    run(in_one_row(describe<Bfloat16>(given)));
  } else {
    dispatch(given, run);
  }
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "example_weight_grad(Tensor x, Tensor grad, Tensor(a!) weight, Tensor(b!)? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool accumulate) -> ()");
  library.def(
      "measured_weight_grad(Tensor x, Tensor grad, Tensor(a!) weight, Tensor(b!)? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cpu));
  library.impl("measured_weight_grad", TORCH_BOX(&measured_weight_grad_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cuda));
}
#endif

}  // namespace privimage
