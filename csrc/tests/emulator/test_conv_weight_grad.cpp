// The CUDA kernel of the per-example weight gradient, emulated, against float64 on ragged shapes.
#include <cmath>
#include <limits>

#include "kernels/conv_weight_grad.cuh"
#include "tests/emulator/guarded.h"

namespace privimage {
namespace {

using emulator::Counters;
using emulator::Guarded;

struct Shape {
  int side;
  int64_t examples, draws, height, width, in_channels, out_channels;
};

// A small generator of our own: <random> takes longer to compile than all kernels.
struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
};

struct Layer {
  Shape shape;
  std::vector<Bfloat16> input;        // [examples, draws, height, width, in_channels]
  std::vector<Bfloat16> output_grad;  // [examples, draws, height, width, out_channels]

  int64_t parameters() const {
    return shape.side * shape.side * shape.in_channels * shape.out_channels;
  }
};

// Whole numbers from -8 to 8: every sum of ours is exact in fp32, whatever its order.
Layer draw_whole_numbers(const Shape& shape, Random random) {
  const int64_t pixels = shape.examples * shape.draws * shape.height * shape.width;
  Layer layer{shape, std::vector<Bfloat16>(pixels * shape.in_channels),
              std::vector<Bfloat16>(pixels * shape.out_channels)};
  for (Bfloat16& value : layer.input) value = to_bfloat16(int(random.next() % 17) - 8);
  for (Bfloat16& value : layer.output_grad) value = to_bfloat16(int(random.next() % 17) - 8);
  return layer;
}

Layer draw_fractions(const Shape& shape, Random random) {
  Layer layer = draw_whole_numbers(shape, random);
  for (Bfloat16& value : layer.input) value = to_bfloat16(float(random.next()) / 0x1p30f - 1.0f);
  for (Bfloat16& value : layer.output_grad) {
    value = to_bfloat16(float(random.next()) / 0x1p34f - 0x1p-4f);
  }
  return layer;
}

// The definition, in double precision: [examples, out_channels, side, side, in_channels].
std::vector<double> define(const Layer& layer, bool magnitudes = false) {
  const auto [side, examples, draws, height, width, in_channels, out_channels] = layer.shape;
  std::vector<double> parts(examples * layer.parameters());
  const auto value = [magnitudes](Bfloat16 bits) {
    const double number = to_float(bits);
    return magnitudes ? std::abs(number) : number;
  };
  for (int64_t image = 0; image < examples * draws; ++image) {
    for (int64_t pixel = 0; pixel < height * width; ++pixel) {
      const Bfloat16* grad = &layer.output_grad[(image * height * width + pixel) * out_channels];
      for (int tap = 0; tap < side * side; ++tap) {
        const int64_t y = pixel / width + tap / side - side / 2;
        const int64_t x = pixel % width + tap % side - side / 2;
        if (y < 0 || y >= height || x < 0 || x >= width) continue;
        const Bfloat16* input = &layer.input[((image * height + y) * width + x) * in_channels];
        double values[128];
        for (int64_t in = 0; in < in_channels; ++in) values[in] = value(input[in]);
        for (int64_t out = 0; out < out_channels; ++out) {
          const double factor = value(grad[out]);
          double* row =
              &parts[image / draws * layer.parameters() + (out * side * side + tap) * in_channels];
          for (int64_t in = 0; in < in_channels; ++in) row[in] += factor * values[in];
        }
      }
    }
  }
  return parts;
}

struct Result {
  std::vector<float> parts;     // [examples, parameters + 3]
  std::vector<double> squares;  // [examples]
  Counters counters;
};

template <typename Tile, bool kStore>
Result emulate(const Layer& layer, uint64_t seed) {
  const Shape& shape = layer.shape;
  const int64_t stride = layer.parameters() + 3;
  Guarded<Bfloat16> input(layer.input), output_grad(layer.output_grad);
  ConvWeightGrad job{input.data(),      output_grad.data(), nullptr,      nullptr,
                     shape.examples,    shape.draws,        shape.height, shape.width,
                     shape.in_channels, shape.out_channels, stride};
  const int64_t slots = cuda::conv_slots<Tile>(job);
  Guarded<float> parts(kStore ? shape.examples * stride : 0);
  Guarded<double> squares(shape.examples * slots);
  job.parts = kStore ? parts.data() : nullptr;
  job.squares = squares.data();
  const int shared = cuda::conv_band<Tile>(job).shared_bytes;
  CHECK(shared <= 163 * 1024);  // what a block can have on an A100
  Result result;
  result.counters = emulator::run(
      {shape.examples, slots, Tile::kThreads, shared, seed},
      [&](const cuda::Block& block) { cuda::conv_weight_grad<Tile, kStore>(block, job); });
  for (int64_t i = 0; i < parts.size(); ++i) result.parts.push_back(parts[i]);
  for (int64_t example = 0; example < shape.examples; ++example) {
    double total = 0.0;
    for (int64_t slot = 0; slot < slots; ++slot) total += squares[example * slots + slot];
    result.squares.push_back(total);
  }
  return result;
}

// Both modes: the parts within `tolerance` of the magnitudes that were added, the squares those of
// the very values that were stored, and nothing written beside the parts.
template <typename Tile>
void matches(const Layer& layer, double tolerance, uint64_t seed) {
  const Result stored = emulate<Tile, true>(layer, seed);
  const std::vector<double> expected = define(layer);
  const std::vector<double> magnitudes = tolerance > 0.0 ? define(layer, true) : expected;
  const int64_t parameters = layer.parameters();
  for (int64_t example = 0; example < layer.shape.examples; ++example) {
    double squares = 0.0;
    for (int64_t i = 0; i < parameters + 3; ++i) {
      const float value = stored.parts[example * (parameters + 3) + i];
      if (i >= parameters) {
        CHECK(std::isnan(value));
        continue;
      }
      const int64_t place = example * parameters + i;
      CHECK(std::abs(value - expected[place]) <= tolerance * magnitudes[place]);
      squares += double(value) * value;
    }
    CHECK(std::abs(stored.squares[example] - squares) <= 1e-12 * squares);
  }
  // Another seed, another order of warps: the same bits.
  const Result measured = emulate<Tile, false>(layer, seed + 1);
  for (int64_t example = 0; example < layer.shape.examples; ++example) {
    CHECK(measured.squares[example] == stored.squares[example]);
  }
}

using Conv3Wide = cuda::ConvTile<3, 64, 64>;
using Conv3Narrow = cuda::ConvTile<3, 32, 32>;
using Conv1 = cuda::ConvTile<1, 64, 64>;

void whole_numbers_are_exact() {
  uint64_t seed = 0;
  for (const Shape& shape : {
           Shape{3, 2, 1, 8, 8, 32, 32},   // one band
           Shape{3, 1, 4, 7, 7, 32, 24},   // 8 pixels span rows, the last 16 are not full
           Shape{3, 2, 2, 5, 3, 8, 16},    // smaller than a warp's tile
           Shape{3, 2, 3, 11, 1, 8, 8},    // halo wider than the image
           Shape{3, 1, 1, 1, 40, 16, 8},   // two bands side by side, the second narrow
           Shape{3, 1, 4, 9, 13, 3, 32},   // channels that copies of 16 bytes can't bring
           Shape{3, 2, 1, 14, 14, 32, 3},  // likewise for the gradient
           Shape{3, 1, 1, 28, 28, 27, 20},
       }) {
    matches<Conv3Narrow>(draw_whole_numbers(shape, {++seed}), 0.0, seed);
  }
  for (const Shape& shape : {
           Shape{3, 1, 1, 14, 14, 64, 64},
           Shape{3, 2, 1, 7, 7, 72, 40},    // two tiles of inputs
           Shape{3, 1, 2, 4, 6, 128, 128},  // four tiles
           Shape{3, 1, 1, 10, 9, 33, 65},
           Shape{3, 1, 1, 28, 28, 64, 32},
       }) {
    matches<Conv3Wide>(draw_whole_numbers(shape, {++seed}), 0.0, seed);
  }
  for (const Shape& shape : {
           Shape{1, 2, 4, 7, 7, 64, 64},
           Shape{1, 1, 1, 28, 28, 96, 128},
           Shape{1, 2, 1, 14, 14, 8, 20},
           Shape{1, 3, 2, 5, 37, 24, 8},
           Shape{1, 1, 1, 1, 1, 1, 1},
       }) {
    matches<Conv1>(draw_whole_numbers(shape, {++seed}), 0.0, seed);
  }
}

void nothing_to_add_gives_zero() {
  matches<Conv3Narrow>(draw_whole_numbers({3, 2, 0, 4, 4, 8, 8}, {1}), 0.0, 1);
  matches<Conv3Narrow>(draw_whole_numbers({3, 2, 1, 0, 4, 8, 8}, {1}), 0.0, 1);
  matches<Conv1>(draw_whole_numbers({1, 2, 1, 4, 0, 8, 8}, {1}), 0.0, 1);
  matches<Conv1>(draw_whole_numbers({1, 0, 1, 4, 4, 8, 8}, {1}), 0.0, 1);
}

// n numbers added one by one in fp32 are off by at most n 2^-24 of their magnitudes; chance makes
// it far less.
void fractions_are_close_to_float64() {
  for (uint64_t seed : {1, 2, 3}) {
    const double tolerance = 4e-7;
    matches<Conv3Narrow>(draw_fractions({3, 1, 4, 14, 14, 32, 32}, {seed}), tolerance, seed);
    matches<Conv3Wide>(draw_fractions({3, 1, 1, 9, 16, 48, 64}, {seed}), tolerance, seed);
    matches<Conv1>(draw_fractions({1, 2, 4, 8, 8, 64, 32}, {seed}), tolerance, seed);
  }
}

// What is not finite stays in its example, and makes its norm so.
void examples_do_not_touch_each_other() {
  Layer layer = draw_whole_numbers({3, 3, 2, 7, 9, 16, 24}, {5});
  const Result clean = emulate<Conv3Narrow, true>(layer, 1);
  const int64_t pixels = 2 * 7 * 9;
  for (int64_t i = pixels * 16; i < 2 * pixels * 16; ++i) layer.input[i] = {0x7f80};  // infinity
  layer.output_grad[pixels * 24 + 5] = {0xffc0};                                      // NaN
  const Result mixed = emulate<Conv3Narrow, true>(layer, 2);
  const int64_t stride = layer.parameters() + 3;
  for (int64_t example : {0, 2}) {
    CHECK(mixed.squares[example] == clean.squares[example]);
    for (int64_t i = 0; i < layer.parameters(); ++i) {
      CHECK(mixed.parts[example * stride + i] == clean.parts[example * stride + i]);
    }
  }
  CHECK(!std::isfinite(mixed.squares[1]));
}

template <typename Tile>
double wavefronts(int64_t height, int64_t width) {
  const Layer layer = draw_whole_numbers({Tile::kSide, 1, 1, height, width, 32, 32}, {1});
  const Counters counters = emulate<Tile, false>(layer, 1).counters;
  return double(counters.wavefronts) / double(counters.matrices);
}

void fragments_are_read_without_bank_conflicts() {
  for (int64_t width : {32, 28, 16, 14, 8}) CHECK(wavefronts<Conv3Narrow>(8, width) == 1.0);
  CHECK(wavefronts<Conv3Wide>(8, 16) == 1.0);
  CHECK(wavefronts<Conv1>(7, 28) == 1.0);
  // 49 pixels are no multiple of 16: those that fill up all look at the first.
  CHECK(wavefronts<Conv3Narrow>(7, 7) <= 1.1);
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::whole_numbers_are_exact();
  privimage::nothing_to_add_gives_zero();
  privimage::fractions_are_close_to_float64();
  privimage::examples_do_not_touch_each_other();
  privimage::fragments_are_read_without_bank_conflicts();
}
