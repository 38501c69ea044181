// The plain CUDA kernels of the per-example weight gradient, emulated, against the definition on
// any strides, taps, groups and dilation: rows, norms and sums.
#include <cmath>
#include <vector>

#include "kernels/bias_grad.cuh"
#include "kernels/example_weight_grad.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

using cuda::Block;
using emulator::Guarded;
using emulator::Random;

ConvAxis axis(int64_t inputs, int64_t taps, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = inputs + 2 * padding - dilation * (taps - 1) - 1;
  return {inputs, reach < 0 ? 0 : reach / stride + 1, taps, stride, padding, dilation};
}

// Channels last or first, with gaps between pixels and rows that are not to be read.
ImageStrides strides(int64_t channels, int64_t height, int64_t width, bool last, int64_t gap) {
  if (last) {
    const int64_t line = width * (channels + gap) + gap;
    return {height * line, 1, line, channels + gap};
  }
  const int64_t plane = height * (width + gap);
  return {channels * plane + gap, plane, width + gap, 1};
}

struct Case {
  ConvGeometry shape;
  bool last;
  int64_t gap;
};

// Whole numbers, whose sums are exact in every type and order.
template <typename Scalar>
void is_exact(const Case& given, bool accumulate, uint64_t seed) {
  const ConvGeometry& shape = given.shape;
  const int64_t images = shape.examples * shape.draws, outputs = shape.groups * shape.outputs;
  const int64_t inputs = shape.groups * shape.inputs;
  const int64_t taps = shape.height.taps * shape.width.taps;
  const auto xs = strides(inputs, shape.height.inputs, shape.width.inputs, given.last, given.gap);
  const auto gs =
      strides(outputs, shape.height.outputs, shape.width.outputs, given.last, given.gap);
  Random random{seed};
  const auto draw = [&](int64_t count) {
    std::vector<Scalar> values(count);
    for (Scalar& value : values) value = narrow<Scalar>(int(random.next() % 201) - 100);
    return values;
  };
  Guarded<Scalar> x(draw(images * xs.row)), grad(draw(images * gs.row));
  const int64_t weights = cuda::weights_an_example(shape), row = weights + 2, beside = outputs + 1;
  const std::vector<Wide<Scalar>> before(shape.examples * row, Wide<Scalar>(1));
  const std::vector<Wide<Scalar>> before_bias(shape.examples * beside, Wide<Scalar>(1));
  Guarded<Wide<Scalar>> weight(before), bias(before_bias);
  const ExampleWeightGrad<Scalar> layer{shape, x.data(), xs, grad.data(), gs, {}, {}, {}, {}, {}};
  using Rows = GradRows<Wide<Scalar>>;
  const Rows of_weight{weight.data(), nullptr, row, accumulate};
  const Rows of_bias{bias.data(), nullptr, beside, accumulate};
  const auto emulate = [&](const cuda::LaunchShape& launch, auto kernel) {
    if (launch.empty()) return;
    emulator::run({launch.blocks_x, launch.blocks_y, launch.threads, launch.shared_bytes, seed},
                  [&](const Block& block) { kernel(block); });
  };
  // What the launcher queues.
  const auto run = [&](const WeightGradOnGpu<Scalar>& job) {
    emulate(cuda::weight_launch(shape),
            [&](const Block& block) { cuda::plain_weight_grad(block, job); });
    const auto of_bias = cuda::bias_of(job, cuda::weight_blocks(shape));
    emulate(cuda::bias_launch<Scalar>(shape.examples, of_bias.channels),
            [&](const Block& block) { cuda::bias_grad(block, of_bias); });
  };
  const int64_t slots = cuda::plain_slots(
      WeightGradOnGpu<Scalar>{layer, {}, {}, true, {}, nullptr, nullptr, nullptr});
  Guarded<double> squares(shape.examples * slots), again(shape.examples * slots);
  run({layer, of_weight, of_bias, true, {squares.data(), slots, 0}, nullptr, nullptr, nullptr});
  std::vector<double> expected(before.size(), accumulate), for_bias(before_bias.size(), accumulate);
  for (int64_t image = 0; image < images; ++image) {
    const int64_t example = image / shape.draws;
    for (int64_t out = 0; out < outputs; ++out) {
      for (int64_t r = 0; r < shape.height.outputs; ++r) {
        for (int64_t c = 0; c < shape.width.outputs; ++c) {
          const double factor =
              widen(grad[image * gs.row + out * gs.channel + r * gs.height + c * gs.width]);
          for_bias[example * beside + out] += factor;
          for (int64_t in = 0; in < shape.inputs; ++in) {
            for (int64_t tap = 0; tap < taps; ++tap) {
              const int64_t y = input_position(shape.height, r, tap / shape.width.taps);
              const int64_t z = input_position(shape.width, c, tap % shape.width.taps);
              if (y < 0 || y >= shape.height.inputs || z < 0 || z >= shape.width.inputs) continue;
              const int64_t channel = out / shape.outputs * shape.inputs + in;
              expected[example * row + (out * shape.inputs + in) * taps + tap] +=
                  factor *
                  widen(x[image * xs.row + channel * xs.channel + y * xs.height + z * xs.width]);
            }
          }
        }
      }
    }
  }
  for (int64_t i = 0; i < weight.size(); ++i) {
    CHECK(weight[i] == (i % row < weights ? expected[i] : 1.0));
  }
  for (int64_t i = 0; i < bias.size(); ++i) {
    CHECK(bias[i] == (i % beside < outputs ? for_bias[i] : 1.0));
  }
  // Rows in bfloat16 are the same rounded, and so are their norms.
  const auto halved = [](const auto& rows) {
    std::vector<Bfloat16> half;
    for (double value : rows) half.push_back(to_bfloat16(float(value)));
    return half;
  };
  Guarded<Bfloat16> half(halved(before)), half_bias(halved(before_bias));
  const Rows of_half{nullptr, half.data(), row, accumulate};
  const Rows of_half_bias{nullptr, half_bias.data(), beside, accumulate};
  run({layer, of_half, of_half_bias, true, {again.data(), slots, 0}, nullptr, nullptr, nullptr});
  std::vector<double> of_example(shape.examples);
  const auto is_rounded = [&](const Guarded<Bfloat16>& found, const std::vector<double>& exact,
                              int64_t stride, int64_t count) {
    for (int64_t i = 0; i < found.size(); ++i) {
      const double value = i % stride < count ? exact[i] : 1.0;
      CHECK(to_float(found[i]) == to_float(to_bfloat16(float(value))));
      if (i % stride < count) of_example[i / stride] += std::pow(to_float(found[i]), 2);
    }
  };
  is_rounded(half, expected, row, weights);
  is_rounded(half_bias, for_bias, beside, outputs);
  for (int64_t example = 0; example < shape.examples; ++example) {
    double found = 0.0;
    for (int64_t slot = 0; slot < slots; ++slot) found += again[example * slots + slot];
    CHECK(found == of_example[example]);
  }
  if (accumulate) return;
  // Norms and sums of the same values, without any rows.
  run({layer, {}, {}, true, {again.data(), slots, 0}, nullptr, nullptr, nullptr});
  std::vector<double> factors;
  for (int64_t example = 0; example < shape.examples; ++example) {
    double found = 0.0, wanted = 0.0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      CHECK(again[example * slots + slot] == squares[example * slots + slot]);
      found += squares[example * slots + slot];
    }
    for (int64_t i = 0; i < weights; ++i) wanted += std::pow(expected[example * row + i], 2);
    for (int64_t i = 0; i < outputs; ++i) wanted += std::pow(for_bias[example * beside + i], 2);
    CHECK(found == wanted);
    factors.push_back(example == 1 ? 0.0 : 1.75 + double(example));
  }
  if (shape.examples > 1 && grad.size() > 0) {  // what is not finite has scale 0
    grad.data()[shape.draws * gs.row] = narrow<Scalar>(std::nanf(""));
  }
  Guarded<double> scales(factors);
  Guarded<int64_t> sum(std::vector<int64_t>(weights, 7)),
      bias_sum(std::vector<int64_t>(outputs, 7));
  run({layer, {}, {}, true, {}, scales.data(), sum.data(), bias_sum.data()});
  const auto is_scaled = [&](const Guarded<int64_t>& sums, const std::vector<double>& rows,
                             int64_t stride) {
    for (int64_t i = 0; i < sums.size(); ++i) {
      int64_t wanted = 7;
      for (int64_t example = 0; example < shape.examples; ++example) {
        wanted += int64_t(rows[example * stride + i] * factors[example]);
      }
      CHECK(sums[i] == wanted);
    }
  };
  is_scaled(sum, expected, row);
  is_scaled(bias_sum, for_bias, beside);
}

// Sums that are not exact, and so have an order: rows, norms and scaled sums see the same bits, by
// which the plan may compute again what it would have kept.
template <typename Scalar>
void what_is_computed_again_is_what_was_kept(const ConvGeometry& shape, uint64_t seed) {
  Random random{seed};
  const auto draw = [&](const ImageStrides& strides) {
    std::vector<Scalar> values(shape.examples * shape.draws * strides.row);
    for (Scalar& value : values) value = narrow<Scalar>(random.fraction());
    return values;
  };
  const int64_t outputs = shape.groups * shape.outputs, weights = cuda::weights_an_example(shape);
  const auto xs = strides(shape.groups * shape.inputs, shape.height.inputs, shape.width.inputs,
                          seed % 2 == 0, 0);
  const auto gs = strides(outputs, shape.height.outputs, shape.width.outputs, seed % 2 == 0, 0);
  Guarded<Scalar> x(draw(xs)), grad(draw(gs));
  const ExampleWeightGrad<Scalar> layer{shape, x.data(), xs, grad.data(), gs, {}, {}, {}, {}, {}};
  const auto run = [&](const WeightGradOnGpu<Scalar>& job, uint64_t order) {
    const cuda::LaunchShape launch = cuda::weight_launch(shape);
    emulator::run({launch.blocks_x, launch.blocks_y, launch.threads, launch.shared_bytes, order},
                  [&](const Block& block) { cuda::plain_weight_grad(block, job); });
    const auto bias = cuda::bias_of(job, cuda::weight_blocks(shape));
    const cuda::LaunchShape of_bias = cuda::bias_launch<Scalar>(shape.examples, bias.channels);
    emulator::run(
        {of_bias.blocks_x, of_bias.blocks_y, of_bias.threads, of_bias.shared_bytes, order},
        [&](const Block& block) { cuda::bias_grad(block, bias); });
  };
  const int64_t slots = cuda::plain_slots(
      WeightGradOnGpu<Scalar>{layer, {}, {}, true, {}, nullptr, nullptr, nullptr});
  Guarded<Wide<Scalar>> weight(shape.examples * weights), bias(shape.examples * outputs);
  Guarded<double> kept(shape.examples * slots), again(shape.examples * slots);
  run({layer,
       {weight.data(), nullptr, weights, false},
       {bias.data(), nullptr, outputs, false},
       true,
       {kept.data(), slots, 0},
       nullptr,
       nullptr,
       nullptr},
      seed);
  run({layer, {}, {}, true, {again.data(), slots, 0}, nullptr, nullptr, nullptr}, seed + 1);
  for (int64_t i = 0; i < kept.size(); ++i) CHECK(kept[i] == again[i]);
  Guarded<double> scales(std::vector<double>(shape.examples, 0x1p28 / 3));
  Guarded<int64_t> sum(std::vector<int64_t>(weights, 0)),
      bias_sum(std::vector<int64_t>(outputs, 0));
  run({layer, {}, {}, true, {}, scales.data(), sum.data(), bias_sum.data()}, seed + 2);
  const auto is_sum_of = [&](const Guarded<int64_t>& found, const Guarded<Wide<Scalar>>& rows) {
    for (int64_t i = 0; i < found.size(); ++i) {
      int64_t expected = 0;
      for (int64_t example = 0; example < shape.examples; ++example) {
        expected += grid_coordinate(rows[example * found.size() + i], scales[0]);
      }
      CHECK(found[i] == expected);
    }
  };
  is_sum_of(sum, weight);
  is_sum_of(bias_sum, bias);
}

void what_is_computed_again_is_what_was_kept() {
  const ConvAxis same = axis(7, 3, 1, 1, 1), dilated = axis(11, 2, 1, 2, 3);
  const ConvGeometry plain{2, 2, 1, 5, 6, same, axis(9, 3, 1, 1, 1)};
  const ConvGeometry grouped{2, 1, 2, 3, 4, axis(9, 3, 2, 1, 1), dilated};
  for (uint64_t seed : {1, 2}) {
    for (const ConvGeometry& shape : {plain, grouped}) {
      what_is_computed_again_is_what_was_kept<Bfloat16>(shape, seed);
      what_is_computed_again_is_what_was_kept<float>(shape, seed);
      what_is_computed_again_is_what_was_kept<double>(shape, seed);
    }
  }
}

void every_shape_is_exact() {
  uint64_t seed = 0;
  for (bool last : {true, false}) {
    for (int64_t gap : {0, 3}) {
      const ConvAxis same = axis(7, 3, 1, 1, 1), strided = axis(9, 3, 2, 1, 1);
      const ConvAxis dilated = axis(11, 2, 1, 2, 3), single = axis(6, 1, 1, 0, 1);
      for (const ConvGeometry& shape : {
               ConvGeometry{2, 2, 1, 5, 6, same, axis(9, 3, 1, 1, 1)},
               ConvGeometry{1, 3, 2, 3, 4, strided, dilated},
               ConvGeometry{3, 1, 1, 2, 40, single, axis(50, 1, 1, 0, 1)},
               ConvGeometry{2, 1, 4, 1, 2, dilated, same},
               ConvGeometry{2, 0, 1, 3, 2, same, same},
               ConvGeometry{0, 2, 1, 3, 2, same, same},
               ConvGeometry{2, 1, 1, 3, 2, axis(2, 5, 1, 0, 1), same},  // taps beyond the image
           }) {
        ++seed;
        is_exact<Bfloat16>({shape, last, gap}, seed % 2 == 0, seed);
        is_exact<float>({shape, last, gap}, seed % 2 == 1, seed);
        is_exact<double>({shape, last, gap}, seed % 2 == 0, seed);
      }
    }
  }
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::every_shape_is_exact();
  privimage::what_is_computed_again_is_what_was_kept();
}
