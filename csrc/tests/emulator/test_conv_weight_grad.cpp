// The tiled CUDA kernel of the per-example weight gradient, emulated, against float64 on ragged
// shapes: every way to multiply, every tile, every output.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/conv_weight_grad.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

using cuda::Bf16Math;
using cuda::ConvTile;
using cuda::ConvWeightGrads;
using cuda::Fp32Math;
using cuda::LaunchShape;
using cuda::Tf32Math;
using emulator::Counters;
using emulator::Guarded;
using emulator::Random;

struct Shape {
  int64_t examples, draws, height, width, inputs, outputs;
  int64_t stride = 1, padding = -1;  // -1: as much as keeps the size at stride 1
};

ConvGeometry geometry_of(int side, const Shape& shape) {
  const int64_t padding = shape.padding < 0 ? side / 2 : shape.padding;
  const auto axis = [&](int64_t inputs) -> ConvAxis {
    const int64_t reach = inputs + 2 * padding - side;
    return {inputs, reach < 0 ? 0 : reach / shape.stride + 1, side, shape.stride, padding, 1};
  };
  return {shape.examples,     shape.draws,      1, shape.inputs, shape.outputs,
          axis(shape.height), axis(shape.width)};
}

template <typename Scalar>
struct Layer {
  ConvGeometry shape;
  std::vector<Scalar> x;     // [examples, draws, height, width, inputs]
  std::vector<Scalar> grad;  // [examples, draws, height', width', outputs]
  bool with_bias = true;
  int64_t most_shared_bytes = cuda::kMostSharedBytes;  // of a block

  int64_t weights() const {
    return shape.outputs * shape.inputs * shape.height.taps * shape.width.taps;
  }
};

// Whole numbers from -8 to 8: every sum of ours is exact in fp32, whatever its order.
template <typename Scalar>
Layer<Scalar> draw_whole_numbers(const ConvGeometry& shape, Random random) {
  const int64_t images = shape.examples * shape.draws;
  Layer<Scalar> layer{
      shape, std::vector<Scalar>(images * shape.height.inputs * shape.width.inputs * shape.inputs),
      std::vector<Scalar>(images * shape.height.outputs * shape.width.outputs * shape.outputs)};
  for (Scalar& value : layer.x) value = narrow<Scalar>(int(random.next() % 17) - 8);
  for (Scalar& value : layer.grad) value = narrow<Scalar>(int(random.next() % 17) - 8);
  return layer;
}

template <typename Scalar>
Layer<Scalar> draw_fractions(const ConvGeometry& shape, Random random) {
  Layer<Scalar> layer = draw_whole_numbers<Scalar>(shape, random);
  for (Scalar& value : layer.x) value = narrow<Scalar>(random.fraction());
  for (Scalar& value : layer.grad) value = narrow<Scalar>(random.fraction() / 16);
  return layer;
}

// The definition, in double precision: [examples, outputs, inputs, taps, taps].
template <typename Scalar>
std::vector<double> define(const Layer<Scalar>& layer, bool magnitudes = false) {
  const ConvGeometry& shape = layer.shape;
  const int64_t taps = shape.height.taps * shape.width.taps;
  std::vector<double> parts(shape.examples * layer.weights());
  const auto value = [magnitudes](Scalar stored) {
    const double number = widen(stored);
    return magnitudes ? std::abs(number) : number;
  };
  const Scalar* grad = layer.grad.data();
  for (int64_t image = 0; image < shape.examples * shape.draws; ++image) {
    for (int64_t row = 0; row < shape.height.outputs; ++row) {
      for (int64_t column = 0; column < shape.width.outputs; ++column, grad += shape.outputs) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t y = input_position(shape.height, row, tap / shape.width.taps);
          const int64_t x = input_position(shape.width, column, tap % shape.width.taps);
          if (y < 0 || y >= shape.height.inputs || x < 0 || x >= shape.width.inputs) continue;
          const Scalar* input =
              layer.x.data() +
              ((image * shape.height.inputs + y) * shape.width.inputs + x) * shape.inputs;
          std::vector<double> values(shape.inputs);
          for (int64_t in = 0; in < shape.inputs; ++in) values[in] = value(input[in]);
          for (int64_t out = 0; out < shape.outputs; ++out) {
            const double factor = value(grad[out]);
            double* to =
                parts.data() + image / shape.draws * layer.weights() + out * shape.inputs * taps;
            for (int64_t in = 0; in < shape.inputs; ++in)
              to[in * taps + tap] += factor * values[in];
          }
        }
      }
    }
  }
  return parts;
}

// The same of the bias: [examples, outputs].
template <typename Scalar>
std::vector<double> define_bias(const Layer<Scalar>& layer, bool magnitudes = false) {
  const ConvGeometry& shape = layer.shape;
  std::vector<double> sums(shape.examples * shape.outputs);
  const int64_t pixels = shape.draws * shape.height.outputs * shape.width.outputs;
  for (int64_t i = 0; i < int64_t(layer.grad.size()); ++i) {
    const double value = widen(layer.grad[i]);
    sums[i / shape.outputs / pixels * shape.outputs + i % shape.outputs] +=
        magnitudes ? std::abs(value) : value;
  }
  return sums;
}

// Images as the kernel takes them: NaN lies behind a pixel's channels, at times a whole vector.
template <typename Scalar>
class LaidOut {
 public:
  LaidOut(const std::vector<Scalar>& values, int64_t channels, uint64_t seed)
      : pitch_(kVector * (cuda::blocks_for(channels, kVector) + int64_t(seed % 2))),
        memory_(channels == 0 ? 0 : int64_t(values.size()) / channels * pitch_) {
    for (int64_t i = 0; i < int64_t(values.size()); ++i) {
      memory_.data()[i / channels * pitch_ + i % channels] = values[i];
    }
  }
  Pixels<Scalar> pixels() { return {memory_.data(), pitch_}; }

 private:
  static constexpr int64_t kVector = 16 / sizeof(Scalar);
  const int64_t pitch_;
  Guarded<Scalar> memory_;
};

constexpr double kClip = 5.0;
constexpr int64_t kBeside = 3;  // floats between the parts, that nobody may touch

struct Asked {
  bool parts, squares, sum, accumulate;
  bool half = false;  // parts in bfloat16
};

// Rows of an example each, as wide as sums or in bfloat16, with values between them.
class Rows {
 public:
  Rows(int64_t examples, int64_t values, Asked asked)
      : stride_(values + kBeside),
        asked_(asked),
        wide_(asked.parts && !asked.half ? examples * stride_ : 0),
        half_(asked.parts && asked.half ? examples * stride_ : 0) {
    for (int64_t i = 0; i < wide_.size() && asked.accumulate; ++i) wide_.data()[i] = 1.0f;
    for (int64_t i = 0; i < half_.size() && asked.accumulate; ++i) {
      half_.data()[i] = to_bfloat16(1.0f);
    }
  }
  GradRows<float> job() {
    return {asked_.parts && !asked_.half ? wide_.data() : nullptr,
            asked_.parts && asked_.half ? half_.data() : nullptr, stride_, asked_.accumulate};
  }
  std::vector<float> values() const {
    std::vector<float> found;
    for (int64_t i = 0; i < wide_.size(); ++i) found.push_back(wide_[i]);
    for (int64_t i = 0; i < half_.size(); ++i) found.push_back(to_float(half_[i]));
    return found;
  }

 private:
  const int64_t stride_;
  const Asked asked_;
  Guarded<float> wide_;
  Guarded<Bfloat16> half_;
};

struct Result {
  std::vector<float> parts;       // [examples, weights + kBeside]
  std::vector<float> bias;        // [examples, outputs + kBeside]
  std::vector<double> squares;    // [examples]
  std::vector<int64_t> sum;       // [weights]
  std::vector<int64_t> bias_sum;  // [outputs]
  Counters counters;
};

template <typename Tile>
Counters launch(const ConvWeightGrads<typename Tile::Scalar>& jobs, const LaunchShape& shape,
                uint64_t seed) {
  return emulator::run(
      {shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, seed},
      [&](const cuda::Block& block) { cuda::conv_weight_grads<Tile>(block, jobs); });
}

// What `scales` holds for an example comes from the squares that an earlier run measured.
template <typename Tile, typename Scalar = typename Tile::Scalar>
Result emulate(const Layer<Scalar>& layer, Asked asked, uint64_t seed,
               const std::vector<double>& measured = {}) {
  const ConvGeometry& shape = layer.shape;
  LaidOut<Scalar> x(layer.x, shape.inputs, seed), grad(layer.grad, shape.outputs, seed / 2);
  const Pixels<Scalar> grads = grad.pixels();
  std::vector<double> factors;
  for (double squares : measured) factors.push_back(grid_scale(squares, {kClip}));
  Guarded<double> scales(factors);
  const int64_t channels = layer.with_bias ? shape.outputs : 0;
  const int64_t slots = cuda::conv_slots<Tile>(shape);
  const int pixels = cuda::band_pixels<Tile>(shape, layer.most_shared_bytes);
  Rows parts(shape.examples, layer.weights(), asked), bias(shape.examples, channels, asked);
  Guarded<double> squares(asked.squares ? shape.examples * slots : 0);
  Guarded<int64_t> sum(std::vector<int64_t>(asked.sum ? layer.weights() : 0, 7));
  Guarded<int64_t> bias_sum(std::vector<int64_t>(asked.sum ? channels : 0, 7));
  const SquareSlots all{asked.squares ? squares.data() : nullptr, slots, 0};
  const BiasGrad<Scalar> of_bias{grads.data,           {0, 0, 0, grads.pitch},
                                 shape.draws,          channels,
                                 shape.height.outputs, shape.width.outputs,
                                 bias.job(),           {},
                                 scales.data(),        asked.sum ? bias_sum.data() : nullptr};
  ConvWeightGrads<Scalar> jobs{};
  LaunchShape whole{};
  CHECK(cuda::add_layer<Tile>({shape, x.pixels(), grads, parts.job(), all, scales.data(),
                               asked.sum ? sum.data() : nullptr, of_bias, pixels},
                              jobs, whole));
  CHECK(whole.blocks_y == slots && whole.possible(layer.most_shared_bytes));
  Result result;
  result.counters = launch<Tile>(jobs, whole, seed);
  result.parts = parts.values();
  result.bias = bias.values();
  for (int64_t i = 0; i < sum.size(); ++i) result.sum.push_back(sum[i] - 7);
  for (int64_t i = 0; i < bias_sum.size(); ++i) result.bias_sum.push_back(bias_sum[i] - 7);
  for (int64_t example = 0; example < shape.examples && asked.squares; ++example) {
    double total = 0.0;
    for (int64_t slot = 0; slot < slots; ++slot) total += squares[example * slots + slot];
    result.squares.push_back(total);
  }
  return result;
}

// Rows of `count` values within `tolerance` of the magnitudes that were added, nothing written
// beside them; adds their squares to those of each example.
void rows_match(const std::vector<float>& found, int64_t count, const std::vector<double>& expected,
                const std::vector<double>& magnitudes, double tolerance, bool accumulate,
                std::vector<double>& squares) {
  const int64_t stride = count + kBeside;
  for (int64_t i = 0; i < int64_t(found.size()); ++i) {
    const float value = found[i];
    if (i % stride >= count) {
      CHECK(accumulate ? value == 1.0f : std::isnan(value));
      continue;
    }
    const int64_t place = i / stride * count + i % stride;
    const double error = std::abs(value - expected[place] - (accumulate ? 1.0 : 0.0));
    CHECK(error <= tolerance * (magnitudes[place] + accumulate));
    squares[i / stride] += double(value) * value;
  }
}

// What stored rows are on the grid, with scales from these squares.
std::vector<int64_t> scaled(const std::vector<float>& rows, int64_t count,
                            const std::vector<double>& squares) {
  std::vector<int64_t> sum(count);
  for (int64_t example = 0; example < int64_t(squares.size()); ++example) {
    const double scale = grid_scale(squares[example], {kClip});
    for (int64_t i = 0; i < count; ++i) {
      const float value = rows[example * (count + kBeside) + i];
      if (scale != 0.0) sum[i] += grid_coordinate(value, scale);
    }
  }
  return sum;
}

// The squares are those of the very values that were stored; measuring alone and adding onto the
// grid see the same values.
template <typename Tile, typename Scalar = typename Tile::Scalar>
void matches(Layer<Scalar> layer, double tolerance, uint64_t seed) {
  layer.with_bias = seed % 4 != 0;
  if (seed % 3 != 0) layer.most_shared_bytes = (seed % 2 == 0 ? 99 : 80) * 1024;
  const bool accumulate = seed % 3 == 0;
  const int64_t weights = layer.weights(), channels = layer.with_bias ? layer.shape.outputs : 0;
  const Result stored = emulate<Tile>(layer, {true, true, false, accumulate}, seed);
  std::vector<double> squares(layer.shape.examples);
  const auto match = [&](const auto& rows, int64_t count, const auto& define_it) {
    const std::vector<double> expected = define_it(layer, false);
    const std::vector<double> magnitudes = tolerance > 0.0 ? define_it(layer, true) : expected;
    rows_match(rows, count, expected, magnitudes, tolerance, accumulate, squares);
  };
  match(stored.parts, weights, define<Scalar>);
  if (layer.with_bias) match(stored.bias, channels, define_bias<Scalar>);
  for (int64_t example = 0; example < layer.shape.examples; ++example) {
    CHECK(std::abs(stored.squares[example] - squares[example]) <= 1e-12 * squares[example]);
  }
  if (accumulate) return;
  // Another seed, another order of warps: the same bits.
  const Result measured = emulate<Tile>(layer, {false, true, false, false}, seed + 1);
  CHECK(measured.squares == stored.squares);
  const Result added =
      emulate<Tile>(layer, {false, false, true, false}, seed + 2, measured.squares);
  CHECK(added.sum == scaled(stored.parts, weights, measured.squares));
  CHECK(added.bias_sum == scaled(stored.bias, channels, measured.squares));
}

template <typename Math>
using Wide = ConvTile<Math, 3, 1, 64, 64>;
template <typename Math>
using Narrow = ConvTile<Math, 3, 1, 32, 32>;
template <typename Math>
using Strided = ConvTile<Math, 3, 2, 64, 64>;
template <typename Math>
using Single = ConvTile<Math, 1, 1, 64, 64>;

uint64_t seed = 0;

template <typename Tile>
void is_exact(const Shape& shape) {
  ++seed;
  const ConvGeometry geometry = geometry_of(Tile::kSide, shape);
  matches<Tile>(draw_whole_numbers<typename Tile::Scalar>(geometry, {seed}), 0.0, seed);
}

void whole_numbers_are_exact() {
  for (const Shape& shape : {
           Shape{2, 1, 8, 8, 32, 32},   // one band
           Shape{1, 4, 7, 7, 32, 24},   // 8 pixels span rows, the last 16 are not full
           Shape{2, 2, 5, 3, 8, 16},    // smaller than a warp's tile
           Shape{2, 3, 11, 1, 8, 8},    // halo wider than the image
           Shape{1, 1, 1, 40, 16, 8},   // two bands side by side, the second narrow
           Shape{1, 4, 9, 13, 3, 32},   // pieces of a tile that no pixel has
           Shape{2, 1, 14, 14, 32, 3},  // likewise of the gradient
           Shape{1, 2, 5, 9, 1, 12},    // a piece that is not full, and two
           Shape{2, 1, 6, 5, 9, 2},
           Shape{1, 3, 4, 4, 17, 5},  // three, of which a power of two is brought
           Shape{1, 1, 28, 28, 27, 20},
           Shape{1, 2, 9, 9, 8, 8, 1, 0},  // no padding
           Shape{1, 1, 6, 7, 8, 8, 1, 3},  // more than the taps reach
       }) {
    is_exact<Narrow<Bf16Math>>(shape);
  }
  is_exact<Wide<Bf16Math>>({1, 1, 14, 14, 64, 64});
  is_exact<Wide<Bf16Math>>({2, 1, 7, 7, 72, 40});    // two tiles of inputs
  is_exact<Wide<Bf16Math>>({1, 2, 4, 6, 128, 128});  // four tiles
  is_exact<Wide<Bf16Math>>({1, 1, 10, 9, 33, 65});
  is_exact<Wide<Bf16Math>>({1, 1, 3, 3, 512, 256});  // 256 x 4608 weights
  is_exact<Strided<Bf16Math>>({2, 1, 14, 14, 40, 64, 2});
  is_exact<Strided<Bf16Math>>({1, 2, 19, 37, 8, 16, 2});  // odd sizes, three bands side by side
  is_exact<Strided<Bf16Math>>({1, 1, 9, 8, 16, 5, 2, 0});
  is_exact<Single<Bf16Math>>({2, 4, 7, 7, 64, 64});
  is_exact<Single<Bf16Math>>({1, 1, 14, 28, 96, 128});
  is_exact<Single<Bf16Math>>({3, 1, 1, 300, 24, 8});  // a linear layer's rows
  is_exact<Single<Bf16Math>>({1, 2, 9, 11, 8, 20, 2});
  is_exact<Single<Bf16Math>>({1, 1, 7, 6, 8, 8, 3, 1});
  is_exact<Single<Bf16Math>>({1, 1, 1, 1, 1, 1});
}

template <typename Math>
void whole_numbers_are_exact_in_float32() {
  is_exact<Narrow<Math>>({1, 2, 7, 7, 32, 24});
  is_exact<Narrow<Math>>({1, 1, 9, 13, 3, 5});
  is_exact<Narrow<Math>>({1, 2, 4, 5, 12, 2});
  is_exact<Wide<Math>>({1, 1, 5, 6, 72, 40});
  is_exact<Strided<Math>>({1, 1, 11, 18, 8, 12, 2});
  is_exact<Single<Math>>({2, 2, 5, 9, 20, 64});
}

void nothing_to_add_gives_zero() {
  is_exact<Narrow<Bf16Math>>({2, 0, 4, 4, 8, 8});
  is_exact<Narrow<Bf16Math>>({2, 1, 0, 4, 8, 8});
  is_exact<Single<Bf16Math>>({2, 1, 4, 0, 8, 8});
  is_exact<Single<Bf16Math>>({0, 1, 4, 4, 8, 8});
  is_exact<Single<Fp32Math>>({2, 1, 4, 4, 0, 8});
}

// n numbers added one by one in fp32 are off by at most n 2^-24 of their magnitudes; chance makes
// it far less. A factor in tf32 is off by up to 2^-11.
void fractions_are_close_to_float64() {
  const auto is_close = [](auto tile, const Shape& shape, double tolerance) {
    using Tile = decltype(tile);
    const ConvGeometry geometry = geometry_of(Tile::kSide, shape);
    matches<Tile>(draw_fractions<typename Tile::Scalar>(geometry, {++seed}), tolerance, seed);
  };
  is_close(Narrow<Bf16Math>{}, {1, 4, 14, 14, 32, 32}, 4e-7);
  is_close(Wide<Bf16Math>{}, {1, 1, 9, 16, 48, 64}, 4e-7);
  is_close(Strided<Bf16Math>{}, {1, 2, 16, 16, 16, 64, 2}, 4e-7);
  is_close(Single<Bf16Math>{}, {2, 4, 8, 8, 64, 32}, 4e-7);
  is_close(Narrow<Fp32Math>{}, {1, 2, 8, 9, 32, 32}, 4e-7);
  is_close(Narrow<Tf32Math>{}, {1, 2, 8, 9, 32, 32}, 0x1p-10);
}

// Rows in bfloat16 are the others rounded; squares and sum are of the rounded values.
template <typename Tile>
void half_rows_are_measured(const Shape& shape) {
  using Scalar = typename Tile::Scalar;
  const auto layer = draw_fractions<Scalar>(geometry_of(Tile::kSide, shape), {++seed});
  const Result wide = emulate<Tile>(layer, {true, true, false, false}, seed);
  for (bool accumulate : {false, true}) {
    const Result half =
        emulate<Tile>(layer, {true, true, true, accumulate, true}, seed, wide.squares);
    std::vector<double> squares(shape.examples);
    const auto match = [&](const auto& found, const auto& exact, int64_t count) {
      CHECK(found.size() == exact.size());
      for (int64_t i = 0; i < int64_t(found.size()); ++i) {
        const bool beside = i % (count + kBeside) >= count;
        const float before = accumulate ? 1.0f : 0.0f;
        const float expected = to_float(to_bfloat16(beside ? before : exact[i] + before));
        CHECK(found[i] == expected || (beside && !accumulate && std::isnan(found[i])));
        if (!beside) squares[i / (count + kBeside)] += double(found[i]) * found[i];
      }
    };
    match(half.parts, wide.parts, layer.weights());
    match(half.bias, wide.bias, layer.shape.outputs);
    for (int64_t example = 0; example < shape.examples; ++example) {
      CHECK(std::abs(half.squares[example] - squares[example]) <= 1e-13 * squares[example]);
    }
    CHECK(half.sum == scaled(half.parts, layer.weights(), wide.squares));
    CHECK(half.bias_sum == scaled(half.bias, layer.shape.outputs, wide.squares));
  }
}

void half_rows_are_measured_as_they_are() {
  half_rows_are_measured<Narrow<Bf16Math>>({2, 2, 6, 5, 16, 24});
  half_rows_are_measured<Wide<Bf16Math>>({1, 1, 5, 6, 72, 40});
  half_rows_are_measured<Strided<Bf16Math>>({1, 1, 9, 8, 16, 5, 2});
  half_rows_are_measured<Single<Bf16Math>>({3, 2, 4, 3, 20, 33});
  half_rows_are_measured<Single<Fp32Math>>({2, 1, 4, 3, 20, 33});
}

// What is not finite stays in its example, makes its norm so and adds nothing to the sum.
template <typename Math>
void examples_do_not_touch_each_other() {
  using Tile = Narrow<Math>;
  auto layer = draw_whole_numbers<typename Math::Scalar>(geometry_of(3, {3, 2, 5, 6, 16, 24}), {5});
  const Result clean = emulate<Tile>(layer, {true, true, false, false}, 1);
  const int64_t pixels = 2 * 5 * 6;
  layer.x[pixels * 16 + 3] = narrow<typename Math::Scalar>(std::numeric_limits<float>::infinity());
  layer.grad[pixels * 24 + 5] = narrow<typename Math::Scalar>(std::nanf(""));
  const Result mixed = emulate<Tile>(layer, {true, true, false, false}, 2);
  for (int64_t example : {0, 2}) {
    CHECK(mixed.squares[example] == clean.squares[example]);
    const auto same = [&](const auto& one, const auto& other, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t place = example * (count + kBeside) + i;
        CHECK(one[place] == other[place]);
      }
    };
    same(mixed.parts, clean.parts, layer.weights());
    same(mixed.bias, clean.bias, layer.shape.outputs);
  }
  CHECK(!std::isfinite(mixed.squares[1]));
  const Result added = emulate<Tile>(layer, {true, false, true, false}, 3, mixed.squares);
  const std::vector<double> others = {clean.squares[0], mixed.squares[1], clean.squares[2]};
  CHECK(added.sum == scaled(clean.parts, layer.weights(), others));
  CHECK(added.bias_sum == scaled(clean.bias, layer.shape.outputs, others));
}

// Layers of other channels, pixels and draws in one launch give what each gives alone, bit by bit,
// and squares side by side.
template <typename Math>
void layers_of_one_launch_are_those_alone() {
  using Tile = Single<Math>;
  using Scalar = typename Math::Scalar;
  const std::vector<Shape> shapes = {
      {3, 2, 4, 5, 20, 70}, {3, 1, 1, 6, 64, 24}, {3, 2, 7, 3, 130, 8}, {3, 0, 1, 2, 8, 8}};
  std::vector<Layer<Scalar>> layers;
  int64_t slots = 0;
  for (const Shape& shape : shapes) {
    layers.push_back(draw_fractions<Scalar>(geometry_of(1, shape), {++seed}));
    layers.back().with_bias = layers.size() != 2;
    slots += cuda::conv_slots<Tile>(layers.back().shape);
  }
  Guarded<double> squares(3 * slots);
  std::vector<std::unique_ptr<LaidOut<Scalar>>> inputs;
  std::vector<std::unique_ptr<Guarded<float>>> rows;
  ConvWeightGrads<Scalar> jobs{};
  LaunchShape whole{};
  SquareSlots mine{squares.data(), slots, 0};
  for (const Layer<Scalar>& layer : layers) {
    const ConvGeometry& shape = layer.shape;
    const int64_t channels = layer.with_bias ? shape.outputs : 0, before = whole.blocks_y;
    inputs.push_back(std::make_unique<LaidOut<Scalar>>(layer.x, shape.inputs, inputs.size()));
    const Pixels<Scalar> x = inputs.back()->pixels();
    inputs.push_back(
        std::make_unique<LaidOut<Scalar>>(layer.grad, shape.outputs, inputs.size() / 2));
    const Pixels<Scalar> grad = inputs.back()->pixels();
    rows.push_back(std::make_unique<Guarded<float>>(3 * (layer.weights() + kBeside)));
    rows.push_back(std::make_unique<Guarded<float>>(3 * (channels + kBeside)));
    const BiasGrad<Scalar> of_bias{grad.data,
                                   {0, 0, 0, grad.pitch},
                                   shape.draws,
                                   channels,
                                   shape.height.outputs,
                                   shape.width.outputs,
                                   {rows.back()->data(), nullptr, channels + kBeside, false},
                                   {},
                                   nullptr,
                                   nullptr};
    const GradRows<float> of_weight{rows[rows.size() - 2]->data(), nullptr,
                                    layer.weights() + kBeside, false};
    CHECK(cuda::add_layer<Tile>(
        {shape, x, grad, of_weight, mine, nullptr, nullptr, of_bias, Tile::kMostPixels}, jobs,
        whole));
    mine = mine.behind(whole.blocks_y - before);
  }
  CHECK(mine.first == slots && whole.blocks_y == slots);
  CHECK(!cuda::add_layer<Tile>(jobs.layers[0], jobs, whole));  // no room for a fifth
  launch<Tile>(jobs, whole, seed);
  int64_t first = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Result alone = emulate<Tile>(layers[i], {true, true, false, false}, seed + i);
    const auto same = [](const Guarded<float>& found, const std::vector<float>& expected) {
      CHECK(found.size() == int64_t(expected.size()));
      for (int64_t j = 0; j < found.size(); ++j) {
        CHECK(found[j] == expected[j] || (std::isnan(found[j]) && std::isnan(expected[j])));
      }
    };
    same(*rows[2 * i], alone.parts);
    same(*rows[2 * i + 1], alone.bias);
    const int64_t own = cuda::conv_slots<Tile>(layers[i].shape);
    for (int64_t example = 0; example < 3; ++example) {
      double total = 0.0;
      for (int64_t slot = 0; slot < own; ++slot) total += squares[example * slots + first + slot];
      CHECK(total == alone.squares[example]);
    }
    first += own;
  }
}

template <typename Tile>
Counters measure(int64_t height, int64_t width, int64_t stride = 1,
                 int64_t most_shared_bytes = cuda::kMostSharedBytes) {
  auto layer = draw_whole_numbers<Bfloat16>(
      geometry_of(Tile::kSide, {1, 1, height, width, 32, 32, stride}), {1});
  layer.most_shared_bytes = most_shared_bytes;
  return emulate<Tile>(layer, {false, true, false, false}, 1).counters;
}

template <typename Tile>
double wavefronts(int64_t height, int64_t width, int64_t stride = 1,
                  int64_t most_shared_bytes = cuda::kMostSharedBytes) {
  const Counters counters = measure<Tile>(height, width, stride, most_shared_bytes);
  return double(counters.wavefronts) / double(counters.matrices);
}

void fragments_are_read_without_bank_conflicts() {
  for (int64_t width : {32, 28, 16, 14, 8}) CHECK(wavefronts<Narrow<Bf16Math>>(8, width) == 1.0);
  CHECK(wavefronts<Wide<Bf16Math>>(8, 16) == 1.0);
  CHECK(wavefronts<Strided<Bf16Math>>(16, 32, 2) == 1.0);
  CHECK(wavefronts<Single<Bf16Math>>(7, 28) == 1.0);
  for (int64_t width : {32, 28, 14, 8}) {  // where a block has less
    CHECK(wavefronts<Wide<Bf16Math>>(8, width, 1, 99 * 1024) == 1.0);
  }
  // 49 pixels are no multiple of 16: those that fill up all look at the first.
  CHECK(wavefronts<Narrow<Bf16Math>>(7, 7) <= 1.1);
  // 24 products of 16 pixels take 64 outputs once and 16 inputs for each of three taps.
  const Counters wide = measure<Wide<Bf16Math>>(8, 16);
  CHECK(24 * wide.matrices == (16 + 3 * 4) * wide.products);
}

// A full tile's rows, which start anywhere in memory, go out in whole sectors, and its share of the
// sum too; shared memory is passed over as often as its bytes ask for.
template <typename Tile>
void whole_sectors_are_written(double most) {
  using emulator::Access;
  const Shape shape{2, 1, 4, 8, Tile::kIn, Tile::kOut};
  const auto layer =
      draw_whole_numbers<typename Tile::Scalar>(geometry_of(Tile::kSide, shape), {1});
  for (bool half : {false, true}) {
    const auto traffic =
        emulate<Tile>(layer, {true, true, true, false, half}, 1, {1.0, 1.0}).counters.traffic;
    const int64_t values = shape.examples * (layer.weights() + shape.outputs);
    const auto &stores = traffic.of(Access::kGlobalStore), &adds = traffic.of(Access::kGlobalAdd);
    CHECK(stores.least >= values * (half ? 2 : 4) / 32 && stores.ratio() <= most);
    CHECK(adds.least >= values * 8 / 32 && adds.ratio() <= 1.2);
    CHECK(traffic.of(Access::kSharedLoad).ratio() == 1.0);
    // Copies into narrow stages take two passes for one: a pixel's channels fill half of the banks.
    const bool narrow = Tile::kIn * sizeof(typename Tile::Scalar) < 128;
    CHECK(narrow || traffic.of(Access::kSharedStore).ratio() <= 1.02);
  }
}

void rows_are_written_in_whole_sectors() {
  whole_sectors_are_written<Wide<Bf16Math>>(1.05);
  whole_sectors_are_written<Narrow<Bf16Math>>(1.1);
  // An output's 64 values in bfloat16 fill four sectors, and touch five.
  whole_sectors_are_written<Single<Bf16Math>>(1.3);
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::whole_numbers_are_exact();
  privimage::whole_numbers_are_exact_in_float32<privimage::cuda::Tf32Math>();
  privimage::whole_numbers_are_exact_in_float32<privimage::cuda::Fp32Math>();
  privimage::nothing_to_add_gives_zero();
  privimage::fractions_are_close_to_float64();
  privimage::half_rows_are_measured_as_they_are();
  privimage::examples_do_not_touch_each_other<privimage::cuda::Bf16Math>();
  privimage::examples_do_not_touch_each_other<privimage::cuda::Tf32Math>();
  privimage::examples_do_not_touch_each_other<privimage::cuda::Fp32Math>();
  privimage::layers_of_one_launch_are_those_alone<privimage::cuda::Bf16Math>();
  privimage::layers_of_one_launch_are_those_alone<privimage::cuda::Fp32Math>();
  privimage::fragments_are_read_without_bank_conflicts();
  privimage::rows_are_written_in_whole_sectors();
}
