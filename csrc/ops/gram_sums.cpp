// torch.ops.privimage.gram_sums: checks, allocates, dispatches. On the CPU, where the plan can
// choose it; on a GPU privimage/ops/_library.py puts the formula itself in its place.
#include "cpu/gram_sums.h"

#include <algorithm>
#include <vector>

#include "ops/conv_arguments.h"
#include "ops/op.h"

namespace privimage {
namespace {

// Multiplications that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 17;

template <typename Scalar>
cpu::GramSums<Scalar> describe(const Tensor& x, const Tensor& grad, const Tensor& sums,
                               const ConvGeometry& geometry, bool with_bias) {
  return {geometry,         static_cast<const Scalar*>(x.const_data_ptr()),
          strides_of(x),    static_cast<const Scalar*>(grad.const_data_ptr()),
          strides_of(grad), static_cast<double*>(sums.mutable_data_ptr()),
          with_bias};
}

// Rows of a matrix, of which a thread holds two: 268 MB.
constexpr int64_t kMostPositions = 4096;

// Of an example, about.
int64_t products(const ConvGeometry& shape) {
  const int64_t positions = cpu::positions(shape), pixels = cpu::pixels_of_a_stride(shape);
  STD_TORCH_CHECK(std::max(positions, pixels) <= kMostPositions, "x, grad: expected at most ",
                  kMostPositions, " positions and pixels of a stride, got ", positions, " and ",
                  pixels);
  return (positions * positions * shape.outputs + pixels * pixels * shape.inputs) / 2;
}

Tensor gram_sums_cpu(const Tensor x, const Tensor grad, int64_t examples,
                     const std::vector<int64_t> taps, bool with_bias,
                     const std::vector<int64_t> stride, const std::vector<int64_t> padding,
                     const std::vector<int64_t> dilation, int64_t groups) {
  check_examples(examples);
  STD_TORCH_CHECK(groups == 1, "groups: expected 1, got ", groups);
  const ConvGeometry geometry =
      geometry_of(x, grad, examples, {taps, stride, padding, dilation, groups});
  const int64_t work = products(geometry);
  Tensor sums = torch::stable::new_empty(x, {4, examples}, ScalarType::Double);
  in_its_type(x, "x", [&](auto zero) {
    const auto job = describe<decltype(zero)>(x, grad, sums, geometry, with_bias);
    torch::stable::parallel_for(
        0, examples, kGrain / (work + 1) + 1,
        [&](int64_t begin, int64_t end) { cpu::gram_sums(job, begin, end); });
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "gram_sums(Tensor x, Tensor grad, int examples, int[] taps, bool with_bias, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("gram_sums", TORCH_BOX(&gram_sums_cpu));
}

}  // namespace privimage
