// torch.ops.privimage.example_weight_grad: checks, dispatches; writes into the caller's rows.
#include "cpu/example_weight_grad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

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
template <typename Scalar>
void write_rows(const ExampleWeightGrad<Scalar>& layer, void* stream) {
  const WeightGradOnGpu<Scalar> job{layer,  layer.bias != nullptr, nullptr, nullptr, nullptr,
                                    nullptr};
  const int error = cuda::launch_example_weight_grad(job, stream);
  STD_TORCH_CHECK(error == 0, "example_weight_grad: CUDA error ", error);
}

void example_weight_grad_cuda(const Tensor x, const Tensor grad, const Tensor weight,
                              const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                              const std::vector<int64_t> padding,
                              const std::vector<int64_t> dilation, int64_t groups,
                              bool accumulate) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Arguments given =
      check(x, grad, weight, bias, stride, padding, dilation, groups, accumulate);
  void* stream = current_cuda_stream(x.get_device_index());
  const auto run = [stream](const auto& layer) { write_rows(layer, stream); };
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
