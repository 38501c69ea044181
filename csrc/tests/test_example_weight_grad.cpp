// The per-example weight gradient on the CPU against the definition: ragged shapes, any layout, any
// split into ranges, every instruction set of this machine.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/example_weight_grad.h"

using namespace privimage;

template <typename Scalar>
struct Case {
  ConvGeometry shape;
  std::vector<Scalar> x, grad;
  ImageStrides x_strides, grad_strides;
};

ImageStrides strides(int64_t channels, int64_t height, int64_t width, bool channels_last) {
  if (channels_last) return {channels * height * width, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

template <typename Scalar>
Case<Scalar> random_case(std::mt19937_64& random, bool one_tap) {
  const auto upto = [&](int64_t least, int64_t most) {
    return least + int64_t(random() % uint64_t(most - least + 1));
  };
  const auto axis = [&] {
    ConvAxis found{upto(1, 17), 0, upto(1, 3), upto(1, 3), upto(0, 3), upto(1, 2)};
    if (one_tap) found = {found.inputs, 0, 1, 1, 0, 1};
    const int64_t reach = found.inputs + 2 * found.padding - found.dilation * (found.taps - 1) - 1;
    found.outputs = reach < 0 ? 0 : reach / found.stride + 1;
    return found;
  };
  Case<Scalar> made;
  const int64_t widest = one_tap ? 150 : 19;  // as many outputs as eight vectors, and more
  made.shape = {upto(0, 3), upto(1, 7), upto(1, 2), upto(1, 40), upto(1, widest), axis(), axis()};
  if (random() % 4 == 0) {  // Patches take the place of so few inputs.
    made.shape.inputs = upto(1, cpu::kFewInputs);
    made.shape.outputs = upto(cpu::kManyOutputs, cpu::kManyOutputs + 10);
  }
  const ConvGeometry& shape = made.shape;
  const int64_t inputs = shape.groups * shape.inputs, outputs = shape.groups * shape.outputs;
  const int64_t rows = shape.examples * shape.draws;
  made.x.resize(rows * inputs * shape.height.inputs * shape.width.inputs);
  made.grad.resize(rows * outputs * shape.height.outputs * shape.width.outputs);
  made.x_strides = strides(inputs, shape.height.inputs, shape.width.inputs, random() % 2);
  made.grad_strides = strides(outputs, shape.height.outputs, shape.width.outputs, random() % 2);
  std::normal_distribution<double> normal;
  for (Scalar& value : made.x) value = Scalar(normal(random));
  for (Scalar& value : made.grad) value = Scalar(normal(random));
  return made;
}

// weight [examples, outputs, inputs, taps], then bias [examples, outputs], by the definition.
template <typename Scalar>
std::vector<double> definition(const Case<Scalar>& given) {
  const ConvGeometry& shape = given.shape;
  const int64_t outputs = shape.groups * shape.outputs;
  const int64_t taps = shape.height.taps * shape.width.taps;
  std::vector<double> weight(shape.examples * outputs * shape.inputs * taps);
  std::vector<double> bias(shape.examples * outputs);
  for (int64_t row = 0; row < shape.examples * shape.draws; ++row) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t h = 0; h < shape.height.outputs; ++h) {
        for (int64_t w = 0; w < shape.width.outputs; ++w) {
          const ImageStrides& gs = given.grad_strides;
          const double grad =
              given.grad[row * gs.row + o * gs.channel + h * gs.height + w * gs.width];
          const int64_t place = row / shape.draws * outputs + o;
          bias[place] += grad;
          for (int64_t i = 0; i < shape.inputs; ++i) {
            for (int64_t t = 0; t < taps; ++t) {
              const int64_t y = input_position(shape.height, h, t / shape.width.taps);
              const int64_t x = input_position(shape.width, w, t % shape.width.taps);
              if (y < 0 || y >= shape.height.inputs || x < 0 || x >= shape.width.inputs) continue;
              const ImageStrides& xs = given.x_strides;
              const int64_t channel = o / shape.outputs * shape.inputs + i;
              weight[(place * shape.inputs + i) * taps + t] +=
                  grad *
                  given.x[row * xs.row + channel * xs.channel + y * xs.height + x * xs.width];
            }
          }
        }
      }
    }
  }
  weight.insert(weight.end(), bias.begin(), bias.end());
  return weight;
}

template <typename Scalar>
std::vector<Scalar> run(const Case<Scalar>& given, const cpu::TileSet<Scalar>& tiles, int64_t split,
                        bool accumulate, int64_t cache_bytes = cpu::kCacheBytes) {
  const ConvGeometry& shape = given.shape;
  const int64_t outputs = shape.groups * shape.outputs;
  const int64_t size = outputs * shape.inputs * shape.height.taps * shape.width.taps;
  const Scalar start = accumulate ? Scalar(1) : std::numeric_limits<Scalar>::quiet_NaN();
  std::vector<Scalar> found(shape.examples * (size + outputs), start);
  const ExampleWeightGrad<Scalar> job{shape,
                                      given.x.data(),
                                      given.x_strides,
                                      given.grad.data(),
                                      given.grad_strides,
                                      found.data(),
                                      size,
                                      found.data() + shape.examples * size,
                                      outputs,
                                      accumulate};
  const ExampleWeightGrad<Scalar> flat = in_one_row(job);
  const int64_t blocks = cpu::example_weight_grad_blocks(flat.geometry);
  for (int64_t begin = 0; begin < blocks; begin += split) {
    cpu::example_weight_grad(flat, tiles, begin, std::min(begin + split, blocks), cache_bytes);
  }
  return found;
}

template <typename Scalar>
void matches_the_definition() {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 60; ++trial) {
    const Case<Scalar> given = random_case<Scalar>(random, trial % 4 == 0);
    const std::vector<double> expected = definition(given);
    const bool accumulate = trial % 3 == 0;
    // Sums of at most 2023 products of size 1 or so; among more of them one is further off.
    const double most =
        (given.shape.outputs > 19 ? 2000 : 1000) * double(std::numeric_limits<Scalar>::epsilon());
    for (const cpu::TileSet<Scalar>* set = cpu::tile_sets<Scalar>(); set->lanes > 0; ++set) {
      const std::vector<Scalar> whole = run(given, *set, 1 << 20, accumulate);
      for (size_t i = 0; i < expected.size(); ++i) {
        const double error = std::abs(double(whole[i]) - expected[i] - (accumulate ? 1.0 : 0.0));
        CHECK(error <= most);  // false for NaN as well
      }
      CHECK(whole == run(given, *set, 1, accumulate));
      CHECK(whole == run(given, *set, 3, accumulate));
      // In chunks of the smallest size, and of several bands; with one or many tiles at a time.
      for (int64_t cache_bytes : {0, 30000, 100000}) {
        CHECK(whole == run(given, *set, 5, accumulate, cache_bytes));
      }
    }
  }
}

void inside_is_what_reads_inside() {
  for (int64_t inputs = 0; inputs < 6; ++inputs) {
    for (int64_t stride = 1; stride < 4; ++stride) {
      for (int64_t padding = 0; padding < 5; ++padding) {
        for (int64_t tap = 0; tap < 3; ++tap) {
          const ConvAxis axis{inputs, 7, 3, stride, padding, 2};
          const Range range = inside(axis, tap);
          for (int64_t output = 0; output < axis.outputs; ++output) {
            const int64_t position = input_position(axis, output, tap);
            const bool reads = position >= 0 && position < inputs;
            CHECK(reads == (output >= range.begin && output < range.end));
          }
        }
      }
    }
  }
}

int main() {
  inside_is_what_reads_inside();
  matches_the_definition<float>();
  matches_the_definition<double>();
}
