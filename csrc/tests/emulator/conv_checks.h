// What tests of the tiled weight gradient hold its results to, whatever the tile and the way to
// multiply.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "tests/emulator/emulated_conv.h"

namespace privimage {

// Rows of `count` values within `tolerance` of the magnitudes that were added, nothing written
// beside them; adds their squares to those of each example.
inline void rows_match(const std::vector<float>& found, int64_t count,
                       const std::vector<double>& expected, const std::vector<double>& magnitudes,
                       double tolerance, bool accumulate, std::vector<double>& squares) {
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
inline std::vector<int64_t> scaled(const std::vector<float>& rows, int64_t count,
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

// Another one for each layer of a test: it decides numbers, what is asked of the kernel, where
// inputs lie and the order of the warps.
inline uint64_t next_seed() {
  static uint64_t seed = 0;
  return ++seed;
}

// Whole numbers: the sums are exact.
template <typename Tile>
void is_exact(const Shape& shape) {
  const uint64_t seed = next_seed();
  const ConvGeometry geometry = geometry_of(Tile::kSide, shape);
  matches<Tile>(draw_whole_numbers<typename Tile::Scalar>(geometry, {seed}), 0.0, seed);
}

// n numbers added one by one in fp32 are off by at most n 2^-24 of their magnitudes; chance makes
// it far less. A factor in tf32 is off by up to 2^-11.
template <typename Tile>
void is_close(const Shape& shape, double tolerance) {
  const uint64_t seed = next_seed();
  const ConvGeometry geometry = geometry_of(Tile::kSide, shape);
  matches<Tile>(draw_fractions<typename Tile::Scalar>(geometry, {seed}), tolerance, seed);
}

// Rows in bfloat16 are the others rounded; squares and sum are of the rounded values.
template <typename Tile>
void half_rows_are_measured(const Shape& shape) {
  using Scalar = typename Tile::Scalar;
  const uint64_t seed = next_seed();
  const auto layer = draw_fractions<Scalar>(geometry_of(Tile::kSide, shape), {seed});
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

}  // namespace privimage
