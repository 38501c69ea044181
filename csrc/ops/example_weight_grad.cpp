// torch.ops.privimage.example_weight_grad and measured_weight_grads: check, dispatch; write into
// the caller's rows.
#include "cpu/example_weight_grad.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/scaled_sum.h"
#include "ops/conv_arguments.h"
#include "ops/op.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/example_weight_grad.h"
#include "ops/example_squares.h"
#endif

namespace privimage {
namespace {

// Multiplications that a thread must have to do to be worth waking it, and how many of them take as
// long as writing one weight.
constexpr int64_t kGrain = 1 << 20;
constexpr int64_t kWriting = 32;

// A layer as the schema has it; `geometry` is checked against the tensors.
struct Arguments {
  Tensor x;
  Tensor grad;
  const Tensor& weight;
  const Tensor* bias;  // or null
  ConvGeometry geometry;
  bool accumulate;
};

// What layers have in common.
struct Stencil {
  const std::vector<int64_t>&stride, &padding, &dilation;
  int64_t groups;
};

Arguments check(const Tensor& x, const Tensor& grad, const Tensor& weight, const Tensor* bias,
                const Stencil& stencil, bool accumulate) {
  check_shape(weight, "weight", {kAnySize, kAnySize, kAnySize, kAnySize, kAnySize});
  const ConvNumbers conv{{weight.size(3), weight.size(4)},
                         stencil.stride,
                         stencil.padding,
                         stencil.dilation,
                         stencil.groups};
  const ConvGeometry geometry = geometry_of(x, grad, weight.size(0), conv);
  check_shape(weight, "weight",
              {weight.size(0), grad.size(1), geometry.inputs, weight.size(3), weight.size(4)});
  check_kept_beside(weight, x, "weight");
  check_rows(weight, "weight");
  if (bias != nullptr) {
    check_shape(*bias, "bias", {weight.size(0), weight.size(1)});
    check_kept_beside(*bias, x, "bias");
    check_rows(*bias, "bias");
  }
  return {x, grad, weight, bias, geometry, accumulate};
}

using Tensors = std::vector<Tensor>;

// Layers of as many examples each, on one device and in one type.
std::vector<Arguments> check(const Tensors& x, const Tensors& grad, const Tensors& weight,
                             const Tensors& bias, const Stencil& stencil) {
  const size_t count = x.size();
  STD_TORCH_CHECK(count > 0, "x: expected a layer or more");
  STD_TORCH_CHECK(grad.size() == count && weight.size() == count, "grad, weight: expected ", count,
                  " of each, as x, got ", grad.size(), " and ", weight.size());
  STD_TORCH_CHECK(bias.empty() || bias.size() == count, "bias: expected ", count,
                  ", as x, or none, got ", bias.size());
  std::vector<Arguments> layers;
  for (size_t i = 0; i < count; ++i) {
    check_beside(x[i], x[0].scalar_type(), x[0], "x");
    layers.push_back(
        check(x[i], grad[i], weight[i], bias.empty() ? nullptr : &bias[i], stencil, false));
    STD_TORCH_CHECK(weight[i].size(0) == weight[0].size(0), "weight: expected ", weight[0].size(0),
                    " examples, got ", weight[i].size(0));
  }
  return layers;
}

const Tensor* address(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

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

// How many of some blocks a thread takes at least, where all of them write so many values.
int64_t grain_of(int64_t blocks, int64_t products, int64_t values) {
  return kGrain / ((products + kWriting * values) / (blocks + 1) + 1) + 1;
}

void example_weight_grad_cpu(const Tensor x, const Tensor grad, const Tensor weight,
                             const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                             const std::vector<int64_t> padding,
                             const std::vector<int64_t> dilation, int64_t groups, bool accumulate) {
  const Arguments given =
      check(x, grad, weight, address(bias), {stride, padding, dilation, groups}, accumulate);
  in_its_type(x, "x", [&](auto zero) {
    const auto job = in_one_row(describe<decltype(zero)>(given));
    const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
    const int64_t grain = grain_of(blocks, multiplications(job.geometry), weight.numel());
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      cpu::example_weight_grad(job, begin, end);
    });
  });
}

// A layer's place in a loop over the multiplications of several.
template <typename Scalar>
struct Share {
  ExampleWeightGrad<Scalar> job;
  int64_t blocks;
  int64_t each;   // multiplications of a block, what writing costs included
  int64_t first;  // of the layer's multiplications in the loop

  int64_t last() const { return first + blocks * each; }

  // The first block that begins at this place of the loop or later.
  int64_t block(int64_t place) const {
    return std::clamp<int64_t>((place - first + each - 1) / each, 0, blocks);
  }
};

// Writes the rows of all layers in one parallel loop, one layer's blocks behind the other's, and
// the squared norms of what it wrote. Layers differ in what a block takes, so the threads share
// multiplications, not blocks.
template <typename Scalar>
void write_and_measure(const std::vector<Arguments>& layers, int64_t examples, double* squares) {
  std::vector<Share<Scalar>> shares;
  int64_t places = 0;
  for (const Arguments& layer : layers) {
    const ExampleWeightGrad<Scalar> job = in_one_row(describe<Scalar>(layer));
    const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
    const int64_t work = multiplications(job.geometry) + kWriting * layer.weight.numel();
    shares.push_back({job, blocks, work / (blocks + 1) + 1, places});
    places = shares.back().last();
  }
  std::vector<std::vector<double>> of_blocks;
  for (const Share<Scalar>& share : shares) of_blocks.emplace_back(share.blocks);
  torch::stable::parallel_for(0, places, kGrain, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < shares.size(); ++i) {
      const int64_t from = shares[i].block(begin), to = shares[i].block(end);
      if (from < to) cpu::measured_weight_grad(shares[i].job, of_blocks[i].data(), from, to);
    }
  });
  std::fill_n(squares, examples, 0.0);
  for (const std::vector<double>& found : of_blocks) {
    cpu::add_blocks(found.data(), int64_t(found.size()), examples, squares);
  }
}

Tensor measured_weight_grads_cpu(const Tensors x, const Tensors grad, const Tensors weight,
                                 const Tensors bias, const std::vector<int64_t> stride,
                                 const std::vector<int64_t> padding,
                                 const std::vector<int64_t> dilation, int64_t groups) {
  const auto layers = check(x, grad, weight, bias, {stride, padding, dilation, groups});
  const int64_t examples = weight[0].size(0);
  Tensor squares = torch::stable::new_empty(x[0], {examples}, ScalarType::Double);
  in_its_type(x[0], "x", [&](auto zero) {
    write_and_measure<decltype(zero)>(layers, examples,
                                      static_cast<double*>(squares.mutable_data_ptr()));
  });
  return squares;
}

#ifdef PRIVIMAGE_CUDA
// Queues the rows of all layers, and their squares together if they are asked for.
template <typename Scalar>
void queue(std::vector<Arguments> layers, ExampleSquares* squares) {
  void* stream = current_cuda_stream(layers[0].x.get_device_index());
  std::vector<WeightGradOnGpu<Scalar>> jobs;
  int64_t slots = 0;
  for (Arguments& layer : layers) {
    layer.x = for_tiles<Scalar>(layer.x, layer.geometry);
    layer.grad = for_tiles<Scalar>(layer.grad, layer.geometry);
    using Rows = GradRows<Wide<Scalar>>;
    jobs.push_back({in_one_row(describe<Scalar>(layer)),
                    grad_rows<Wide<Scalar>>(layer.weight, layer.accumulate),
                    layer.bias ? grad_rows<Wide<Scalar>>(*layer.bias, layer.accumulate) : Rows{},
                    layer.bias != nullptr,
                    {nullptr, 0, slots},
                    nullptr,
                    nullptr,
                    nullptr});
    if (squares != nullptr) slots += cuda::weight_grad_slots(jobs.back());
  }
  double* values = squares != nullptr ? squares->slots(slots) : nullptr;
  for (WeightGradOnGpu<Scalar>& job : jobs) {
    job.squares.values = values;
    job.squares.count = slots;
  }
  int error = 0;
  for (size_t first = 0; first < jobs.size() && error == 0; first += cuda::kMostLayers) {
    const size_t count = std::min<size_t>(cuda::kMostLayers, jobs.size() - first);
    error = cuda::launch_example_weight_grads(&jobs[first], static_cast<int>(count), stream);
  }
  if (error == 0 && squares != nullptr) error = squares->add_up(stream);
  check_launched(error, "example_weight_grad");
}

void example_weight_grad_cuda(const Tensor x, const Tensor grad, const Tensor weight,
                              const std::optional<Tensor> bias, const std::vector<int64_t> stride,
                              const std::vector<int64_t> padding,
                              const std::vector<int64_t> dilation, int64_t groups,
                              bool accumulate) {
  const DeviceGuard guard(gpu_of(x, "x"));
  const Arguments given =
      check(x, grad, weight, address(bias), {stride, padding, dilation, groups}, accumulate);
  in_its_type_on_gpu(x, "x", [&](auto zero) { queue<decltype(zero)>({given}, nullptr); });
}

Tensor measured_weight_grads_cuda(const Tensors x, const Tensors grad, const Tensors weight,
                                  const Tensors bias, const std::vector<int64_t> stride,
                                  const std::vector<int64_t> padding,
                                  const std::vector<int64_t> dilation, int64_t groups) {
  const auto layers = check(x, grad, weight, bias, {stride, padding, dilation, groups});
  const DeviceGuard guard(gpu_of(x[0], "x"));
  ExampleSquares squares(x[0], weight[0].size(0));
  in_its_type_on_gpu(x[0], "x", [&](auto zero) { queue<decltype(zero)>(layers, &squares); });
  return squares.total();
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "example_weight_grad(Tensor x, Tensor grad, Tensor(a!) weight, Tensor(b!)? bias, "
      "int[] stride, int[] padding, int[] dilation, int groups, bool accumulate) -> ()");
  library.def(
      "measured_weight_grads(Tensor[] x, Tensor[] grad, Tensor(a!)[] weight, Tensor(b!)[] bias, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cpu));
  library.impl("measured_weight_grads", TORCH_BOX(&measured_weight_grads_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("example_weight_grad", TORCH_BOX(&example_weight_grad_cuda));
  library.impl("measured_weight_grads", TORCH_BOX(&measured_weight_grads_cuda));
}
#endif

}  // namespace privimage
