// torch.ops.privimage.squared_norms, scaled_sum, example_weight_norms and recomputed_sum: checks,
// allocates, dispatches.
#include "cpu/scaled_sum.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/recomputed_sum.h"
#include "ops/conv_arguments.h"
#include "ops/op.h"
#include "ops/scaled_arguments.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/example_weight_grad.h"
#include "kernels/scaled_sum.h"
#include "ops/example_squares.h"
#endif

namespace privimage {
namespace {

// Values, and multiplications, that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kConvGrain = 1 << 20;

template <typename Scalar>
KeptParts<Scalar> describe(const Tensor& parts) {
  return {static_cast<const Scalar*>(parts.const_data_ptr()), parts.stride(0), parts.size(0),
          parts.size(1)};
}

// Pairs of the first column and the one behind the last.
std::vector<Columns> ranges_of(const std::vector<int64_t>& columns, const Tensor& parts) {
  STD_TORCH_CHECK(columns.size() % 2 == 0, "columns: expected pairs, got ", columns.size(),
                  " numbers");
  std::vector<Columns> ranges;
  for (size_t i = 0; i < columns.size(); i += 2) {
    const Columns range{columns[i], columns[i + 1]};
    STD_TORCH_CHECK(0 <= range.begin && range.begin <= range.end && range.end <= parts.size(1),
                    "columns: expected some of ", parts.size(1), ", got ", range.begin, " to ",
                    range.end);
    ranges.push_back(range);
  }
  return ranges;
}

Tensor squared_norms_cpu(const Tensor parts, const std::vector<int64_t> columns) {
  check_parts(parts);
  const std::vector<Columns> ranges = ranges_of(columns, parts);
  Tensor squares = torch::stable::new_empty(parts, {parts.size(0)}, ScalarType::Double);
  auto* out = static_cast<double*>(squares.mutable_data_ptr());
  in_its_type(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts);
    const int64_t grain = kGrain / (job.parameters + 1) + 1;
    torch::stable::parallel_for(0, job.examples, grain, [&](int64_t begin, int64_t end) {
      cpu::squared_norms(job, ranges, out, begin, end);
    });
  });
  return squares;
}

void scaled_sum_cpu(const Tensor parts, const Tensor scales, const Tensor total, bool accumulate) {
  check_parts(parts);
  const double* factors = read_scales(scales, parts, parts.size(0));
  int64_t* out = sum_of(total, parts.size(1), parts, "total");
  in_its_type(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts);
    const int64_t grain = kGrain / (job.examples + 1) + 1;
    torch::stable::parallel_for(0, job.parameters, grain, [&](int64_t begin, int64_t end) {
      cpu::scaled_sum(job, factors, accumulate, out, begin, end);
    });
  });
}

// The job of a convolution whose gradients go to no rows; `bias` is null where there is none.
template <typename Scalar>
ExampleWeightGrad<Scalar> describe(const Tensor& x, const Tensor& grad,
                                   const ConvGeometry& geometry, Wide<Scalar>* bias) {
  return in_one_row(
      ExampleWeightGrad<Scalar>{geometry, static_cast<const Scalar*>(x.const_data_ptr()),
                                strides_of(x), static_cast<const Scalar*>(grad.const_data_ptr()),
                                strides_of(grad), nullptr, 0, bias, 0, false});
}

int64_t grain_of(const ConvGeometry& shape, int64_t blocks) {
  return kConvGrain / (multiplications(shape) / (blocks + 1) + 1) + 1;
}

Tensor example_weight_norms_cpu(const Tensor x, const Tensor grad, int64_t examples,
                                const std::vector<int64_t> taps, bool with_bias,
                                const std::vector<int64_t> stride,
                                const std::vector<int64_t> padding,
                                const std::vector<int64_t> dilation, int64_t groups) {
  check_examples(examples);
  Tensor squares = torch::stable::new_empty(x, {examples}, ScalarType::Double);
  auto* out = static_cast<double*>(squares.mutable_data_ptr());
  in_its_type(x, "x", [&](auto zero) {
    const ConvGeometry shape =
        geometry_of(x, grad, examples, {taps, stride, padding, dilation, groups});
    const auto job = describe<decltype(zero)>(x, grad, shape, with_bias ? &zero : nullptr);
    const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
    std::vector<double> partial(blocks);
    torch::stable::parallel_for(0, blocks, grain_of(job.geometry, blocks),
                                [&](int64_t begin, int64_t end) {
                                  cpu::example_weight_norms(job, partial.data(), begin, end);
                                });
    std::fill_n(out, examples, 0.0);
    cpu::add_blocks(partial.data(), blocks, examples, out);
  });
  return squares;
}

// The sums over examples that `recomputed_sum` adds to, checked against x and grad.
cpu::RecomputedSum read_sums(const Tensor& x, const Tensor& grad, const Tensor& scales,
                             const Tensor& weight_sum, const std::optional<Tensor>& bias_sum,
                             const ConvGeometry& shape, bool accumulate) {
  check_shape(weight_sum, "weight_sum",
              {grad.size(1), shape.inputs, weight_sum.size(2), weight_sum.size(3)});
  return {read_scales(scales, x, shape.examples),
          sum_of(weight_sum, weight_sum.numel(), x, "weight_sum"),
          bias_sum ? sum_of(*bias_sum, grad.size(1), x, "bias_sum") : nullptr, accumulate};
}

ConvNumbers read_numbers(const Tensor& scales, const Tensor& weight_sum,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups) {
  check_shape(scales, "scales", {kAnySize});
  check_shape(weight_sum, "weight_sum", {kAnySize, kAnySize, kAnySize, kAnySize});
  return {{weight_sum.size(2), weight_sum.size(3)}, stride, padding, dilation, groups};
}

void recomputed_sum_cpu(const Tensor x, const Tensor grad, const Tensor scales,
                        const Tensor weight_sum, const std::optional<Tensor> bias_sum,
                        const std::vector<int64_t> stride, const std::vector<int64_t> padding,
                        const std::vector<int64_t> dilation, int64_t groups, bool accumulate) {
  const ConvNumbers conv = read_numbers(scales, weight_sum, stride, padding, dilation, groups);
  in_its_type(x, "x", [&](auto zero) {
    const ConvGeometry shape = geometry_of(x, grad, scales.size(0), conv);
    const auto job = describe<decltype(zero)>(x, grad, shape, bias_sum ? &zero : nullptr);
    const cpu::RecomputedSum sums =
        read_sums(x, grad, scales, weight_sum, bias_sum, shape, accumulate);
    const int64_t blocks = shape.groups * cpu::blocks_a_group(shape);
    torch::stable::parallel_for(
        0, blocks, grain_of(shape, blocks),
        [&](int64_t begin, int64_t end) { cpu::recomputed_sum(job, sums, begin, end); });
  });
}

#ifdef PRIVIMAGE_CUDA
// A copy of the handle: zero_ takes no constant one.
void fill_with_zeros(Tensor tensor) { torch::stable::zero_(tensor); }

Tensor squared_norms_cuda(const Tensor parts, const std::vector<int64_t> columns) {
  const DeviceGuard guard(gpu_of(parts, "parts"));
  check_parts(parts);
  const std::vector<Columns> ranges = ranges_of(columns, parts);
  const int64_t count = int64_t(ranges.size());
  const Tensor squares = new_doubles(parts, {parts.size(0)});
  const Tensor partial =
      new_doubles(parts, {parts.size(0), cuda::squared_norm_pieces(ranges.data(), count)});
  void* stream = current_cuda_stream(parts.get_device_index());
  in_its_type_on_gpu(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts);
    check_launched(cuda::launch_squared_norms(job, ranges.data(), count, doubles(partial),
                                              doubles(squares), stream),
                   "squared_norms");
  });
  return squares;
}

void scaled_sum_cuda(const Tensor parts, const Tensor scales, const Tensor total, bool accumulate) {
  const DeviceGuard guard(gpu_of(parts, "parts"));
  check_parts(parts);
  const double* factors = read_scales(scales, parts, parts.size(0));
  int64_t* out = sum_of(total, parts.size(1), parts, "total");
  void* stream = current_cuda_stream(parts.get_device_index());
  in_its_type_on_gpu(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts);
    check_launched(cuda::launch_scaled_sum(job, factors, accumulate, out, stream), "scaled_sum");
  });
}

Tensor example_weight_norms_cuda(const Tensor x, const Tensor grad, int64_t examples,
                                 const std::vector<int64_t> taps, bool with_bias,
                                 const std::vector<int64_t> stride,
                                 const std::vector<int64_t> padding,
                                 const std::vector<int64_t> dilation, int64_t groups) {
  const DeviceGuard guard(gpu_of(x, "x"));
  check_examples(examples);
  ExampleSquares squares(x, examples);
  const ConvNumbers conv{taps, stride, padding, dilation, groups};
  void* stream = current_cuda_stream(x.get_device_index());
  in_its_type_on_gpu(x, "x", [&](auto zero) {
    using Scalar = decltype(zero);
    const ConvGeometry shape = geometry_of(x, grad, examples, conv);
    const Tensor seen = for_tiles<Scalar>(x, shape), given = for_tiles<Scalar>(grad, shape);
    const auto layer = describe<Scalar>(seen, given, shape, nullptr);
    WeightGradOnGpu<Scalar> job{layer, {}, {}, with_bias, {}, nullptr, nullptr, nullptr};
    const int64_t slots = cuda::weight_grad_slots(job);
    job.squares = {squares.slots(slots), slots, 0};
    int error = cuda::launch_example_weight_grads(&job, 1, stream);
    if (error == 0) error = squares.add_up(stream);
    check_launched(error, "example_weight_norms");
  });
  return squares.total();
}

void recomputed_sum_cuda(const Tensor x, const Tensor grad, const Tensor scales,
                         const Tensor weight_sum, const std::optional<Tensor> bias_sum,
                         const std::vector<int64_t> stride, const std::vector<int64_t> padding,
                         const std::vector<int64_t> dilation, int64_t groups, bool accumulate) {
  const DeviceGuard guard(gpu_of(x, "x"));
  const ConvNumbers conv = read_numbers(scales, weight_sum, stride, padding, dilation, groups);
  void* stream = current_cuda_stream(x.get_device_index());
  in_its_type_on_gpu(x, "x", [&](auto zero) {
    using Scalar = decltype(zero);
    const ConvGeometry shape = geometry_of(x, grad, scales.size(0), conv);
    const Tensor seen = for_tiles<Scalar>(x, shape), given = for_tiles<Scalar>(grad, shape);
    const auto layer = describe<Scalar>(seen, given, shape, nullptr);
    const cpu::RecomputedSum sums =
        read_sums(x, grad, scales, weight_sum, bias_sum, shape, accumulate);
    if (!accumulate) {
      fill_with_zeros(weight_sum);
      if (bias_sum) fill_with_zeros(*bias_sum);
    }
    const bool with_bias = bias_sum.has_value();
    const WeightGradOnGpu<Scalar> job{layer,           {},           {}, with_bias, {}, sums.scales,
                                      sums.weight_sum, sums.bias_sum};
    check_launched(cuda::launch_example_weight_grads(&job, 1, stream), "recomputed_sum");
  });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def("squared_norms(Tensor parts, int[] columns) -> Tensor");
  library.def("scaled_sum(Tensor parts, Tensor scales, Tensor(a!) total, bool accumulate) -> ()");
  library.def(
      "example_weight_norms(Tensor x, Tensor grad, int examples, int[] taps, bool with_bias, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  library.def(
      "recomputed_sum(Tensor x, Tensor grad, Tensor scales, Tensor(a!) weight_sum, "
      "Tensor(b!)? bias_sum, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool accumulate) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("squared_norms", TORCH_BOX(&squared_norms_cpu));
  library.impl("scaled_sum", TORCH_BOX(&scaled_sum_cpu));
  library.impl("example_weight_norms", TORCH_BOX(&example_weight_norms_cpu));
  library.impl("recomputed_sum", TORCH_BOX(&recomputed_sum_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("squared_norms", TORCH_BOX(&squared_norms_cuda));
  library.impl("scaled_sum", TORCH_BOX(&scaled_sum_cuda));
  library.impl("example_weight_norms", TORCH_BOX(&example_weight_norms_cuda));
  library.impl("recomputed_sum", TORCH_BOX(&recomputed_sum_cuda));
}
#endif

}  // namespace privimage
