// The tiled CUDA kernel of the per-example weight gradient, emulated, against float64 on ragged
// shapes: every way to multiply, every tile, every output.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "tests/emulator/emulated_conv.h"

namespace privimage {
namespace {

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
    is_exact<NarrowTile<Bf16Math>>(shape);
  }
  is_exact<WideTile<Bf16Math>>({1, 1, 14, 14, 64, 64});
  is_exact<WideTile<Bf16Math>>({2, 1, 7, 7, 72, 40});    // two tiles of inputs
  is_exact<WideTile<Bf16Math>>({1, 2, 4, 6, 128, 128});  // four tiles
  is_exact<WideTile<Bf16Math>>({1, 1, 10, 9, 33, 65});
  is_exact<WideTile<Bf16Math>>({1, 1, 3, 3, 512, 256});  // 256 x 4608 weights
  is_exact<StridedTile<Bf16Math>>({2, 1, 14, 14, 40, 64, 2});
  is_exact<StridedTile<Bf16Math>>({1, 2, 19, 37, 8, 16, 2});  // odd sizes, three bands side by side
  is_exact<StridedTile<Bf16Math>>({1, 1, 9, 8, 16, 5, 2, 0});
  is_exact<SingleTile<Bf16Math>>({2, 4, 7, 7, 64, 64});
  is_exact<SingleTile<Bf16Math>>({1, 1, 14, 28, 96, 128});
  is_exact<SingleTile<Bf16Math>>({3, 1, 1, 300, 24, 8});  // a linear layer's rows
  is_exact<SingleTile<Bf16Math>>({1, 2, 9, 11, 8, 20, 2});
  is_exact<SingleTile<Bf16Math>>({1, 1, 7, 6, 8, 8, 3, 1});
  is_exact<SingleTile<Bf16Math>>({1, 1, 1, 1, 1, 1});
}

template <typename Math>
void whole_numbers_are_exact_in_float32() {
  is_exact<NarrowTile<Math>>({1, 2, 7, 7, 32, 24});
  is_exact<NarrowTile<Math>>({1, 1, 9, 13, 3, 5});
  is_exact<NarrowTile<Math>>({1, 2, 4, 5, 12, 2});
  is_exact<WideTile<Math>>({1, 1, 5, 6, 72, 40});
  is_exact<StridedTile<Math>>({1, 1, 11, 18, 8, 12, 2});
  is_exact<SingleTile<Math>>({2, 2, 5, 9, 20, 64});
}

void nothing_to_add_gives_zero() {
  is_exact<NarrowTile<Bf16Math>>({2, 0, 4, 4, 8, 8});
  is_exact<NarrowTile<Bf16Math>>({2, 1, 0, 4, 8, 8});
  is_exact<SingleTile<Bf16Math>>({2, 1, 4, 0, 8, 8});
  is_exact<SingleTile<Bf16Math>>({0, 1, 4, 4, 8, 8});
  is_exact<SingleTile<Fp32Math>>({2, 1, 4, 4, 0, 8});
}

// n numbers added one by one in fp32 are off by at most n 2^-24 of their magnitudes; chance makes
// it far less. A factor in tf32 is off by up to 2^-11.
void fractions_are_close_to_float64() {
  const auto is_close = [](auto tile, const Shape& shape, double tolerance) {
    using Tile = decltype(tile);
    const ConvGeometry geometry = geometry_of(Tile::kSide, shape);
    matches<Tile>(draw_fractions<typename Tile::Scalar>(geometry, {++seed}), tolerance, seed);
  };
  is_close(NarrowTile<Bf16Math>{}, {1, 4, 14, 14, 32, 32}, 4e-7);
  is_close(WideTile<Bf16Math>{}, {1, 1, 9, 16, 48, 64}, 4e-7);
  is_close(StridedTile<Bf16Math>{}, {1, 2, 16, 16, 16, 64, 2}, 4e-7);
  is_close(SingleTile<Bf16Math>{}, {2, 4, 8, 8, 64, 32}, 4e-7);
  is_close(NarrowTile<Fp32Math>{}, {1, 2, 8, 9, 32, 32}, 4e-7);
  is_close(NarrowTile<Tf32Math>{}, {1, 2, 8, 9, 32, 32}, 0x1p-10);
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
  half_rows_are_measured<NarrowTile<Bf16Math>>({2, 2, 6, 5, 16, 24});
  half_rows_are_measured<WideTile<Bf16Math>>({1, 1, 5, 6, 72, 40});
  half_rows_are_measured<StridedTile<Bf16Math>>({1, 1, 9, 8, 16, 5, 2});
  half_rows_are_measured<SingleTile<Bf16Math>>({3, 2, 4, 3, 20, 33});
  half_rows_are_measured<SingleTile<Fp32Math>>({2, 1, 4, 3, 20, 33});
}

// What is not finite stays in its example, makes its norm so and adds nothing to the sum.
template <typename Math>
void examples_do_not_touch_each_other() {
  using Tile = NarrowTile<Math>;
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
  using Tile = SingleTile<Math>;
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
}
