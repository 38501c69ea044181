// Sums with given scales on the CPU: what is computed again is what was kept, bit for bit, and its
// norm is that of the same values.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/recomputed_sum.h"
#include "cpu/scaled_sum.h"

using namespace privimage;

int64_t draw(std::mt19937_64& random, int64_t least, int64_t most) {
  return least + int64_t(random() % uint64_t(most - least + 1));
}

ConvGeometry any_convolution(std::mt19937_64& random) {
  const auto upto = [&](int64_t least, int64_t most) { return draw(random, least, most); };
  ConvAxis axes[2];
  for (ConvAxis& axis : axes) {
    axis = {upto(3, 9), 0, upto(1, 3), upto(1, 2), upto(0, 2), 1};
    axis.outputs = (axis.inputs + 2 * axis.padding - axis.taps) / axis.stride + 1;
  }
  return {upto(0, 3), upto(1, 2), upto(1, 2), upto(1, 37), upto(1, 19), axes[0], axes[1]};
}

// A linear layer that each example goes through once.
ConvGeometry outer_products(int64_t examples, int64_t inputs, int64_t outputs) {
  const ConvAxis one{1, 1, 1, 1, 0, 1};
  return {examples, 1, 1, inputs, outputs, one, one};
}

template <typename Scalar>
void recomputed_is_kept(const ConvGeometry& shape, std::mt19937_64& random) {
  const ConvAxis axes[2] = {shape.height, shape.width};
  const int64_t rows = shape.examples * shape.draws;
  const int64_t inputs = shape.groups * shape.inputs, outputs = shape.groups * shape.outputs;
  std::vector<Scalar> x(rows * inputs * axes[0].inputs * axes[1].inputs);
  std::vector<Scalar> grad(rows * outputs * axes[0].outputs * axes[1].outputs);
  std::normal_distribution<double> normal;
  for (Scalar& value : x) value = Scalar(normal(random));
  for (Scalar& value : grad) value = Scalar(normal(random));
  const auto last = [](int64_t channels, int64_t height, int64_t width) {
    return ImageStrides{channels * height * width, 1, channels * width, channels};
  };
  const int64_t size = outputs * shape.inputs * axes[0].taps * axes[1].taps;
  const int64_t whole = size + outputs;
  std::vector<Scalar> kept(shape.examples * whole);
  ExampleWeightGrad<Scalar> job{shape,
                                x.data(),
                                last(inputs, axes[0].inputs, axes[1].inputs),
                                grad.data(),
                                last(outputs, axes[0].outputs, axes[1].outputs),
                                kept.data(),
                                whole,
                                kept.data() + size,
                                whole,
                                false};
  job = in_one_row(job);
  const int64_t blocks = cpu::example_weight_grad_blocks(job.geometry);
  cpu::example_weight_grad(job, 0, blocks);

  const KeptParts<Scalar> parts{kept.data(), whole, shape.examples, whole};
  std::vector<double> squares(shape.examples), scales(shape.examples), partial(blocks);
  cpu::squared_norms(parts, {{0, whole}}, squares.data(), 0, shape.examples);
  cpu::example_weight_norms(job, partial.data(), 0, blocks);
  std::vector<double> again_measured(shape.examples), measured(shape.examples);
  cpu::add_blocks(partial.data(), blocks, shape.examples, again_measured.data());
  const std::vector<Scalar> written = kept;
  std::fill(kept.begin(), kept.end(), Scalar(-1));
  for (int64_t begin = 0; begin < blocks; begin += 3) {
    cpu::measured_weight_grad(job, partial.data(), begin, std::min(begin + 3, blocks));
  }
  CHECK(kept == written);
  cpu::add_blocks(partial.data(), blocks, shape.examples, measured.data());
  for (int64_t i = 0; i < shape.examples; ++i) {
    CHECK(std::abs(again_measured[i] - squares[i]) <= 1e-12 * squares[i]);
    CHECK(measured[i] == again_measured[i]);
    scales[i] = i == 1 ? 0.0 : 0x1p30 / std::sqrt(squares[i]) * 0.99;
  }

  std::vector<int64_t> from_kept(whole, 3), again(whole, 5), once(whole, 5);
  cpu::scaled_sum(parts, scales.data(), false, from_kept.data(), 0, whole);
  std::vector<int64_t> added(whole, 5);
  for (int64_t begin = 0; begin < whole; begin += 33) {
    cpu::scaled_sum(parts, scales.data(), true, added.data(), begin, std::min(begin + 33, whole));
  }
  const int64_t range = shape.groups * cpu::blocks_a_group(shape);
  // What an example of scale 0 holds must not matter.
  const auto second = x.begin() + int64_t(x.size()) / std::max<int64_t>(shape.examples, 1);
  if (shape.examples > 1) *second = std::numeric_limits<Scalar>::infinity();
  // Tile by tile; example by example, with one or several tiles; with chunks of an example.
  const cpu::SumCache caches[] = {{}, {0, 0}, {0, 100000}, {0, 100000, 0}, {0, 0, 30000}};
  const cpu::SumCache& cache = caches[random() % 5];
  for (int64_t begin = 0; begin < range; begin += 2) {
    for (const bool accumulate : {true, false}) {
      int64_t* to = (accumulate ? again : once).data();
      cpu::recomputed_sum<Scalar>(job, {scales.data(), to, to + size, accumulate}, begin,
                                  std::min(begin + 2, range), cache);
    }
  }
  for (int64_t i = 0; i < whole; ++i) {
    int64_t expected = 0;
    for (int64_t e = 0; e < shape.examples; ++e) {
      if (e != 1) expected += grid_coordinate(kept[e * whole + i], scales[e]);
    }
    CHECK(from_kept[i] == expected);
    CHECK(again[i] == expected + 5);
    CHECK(once[i] == expected);
    CHECK(added[i] == expected + 5);
  }
}

template <typename Scalar>
void recomputed_is_kept(std::mt19937_64& random) {
  ConvGeometry convolution = any_convolution(random);
  recomputed_is_kept<Scalar>(convolution, random);
  convolution.inputs = draw(random, 1, cpu::kFewInputs);
  convolution.outputs = draw(random, cpu::kManyOutputs, 19);
  recomputed_is_kept<Scalar>(convolution, random);
  const int64_t examples = draw(random, 0, 300), inputs = draw(random, 1, 150);
  recomputed_is_kept<Scalar>(outer_products(examples, inputs, draw(random, 1, 37)), random);
  // Of two examples the only coordinate comes to nearly 2^31, of three to more.
  recomputed_is_kept<Scalar>(outer_products(draw(random, 0, 9), 1, 1), random);
}

int main() {
  std::mt19937_64 random(7);
  for (int trial = 0; trial < 60; ++trial) {
    recomputed_is_kept<float>(random);
    recomputed_is_kept<double>(random);
  }
}
