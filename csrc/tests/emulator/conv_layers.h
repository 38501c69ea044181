// Layers for the tests of the tiled weight gradient: their numbers, and the gradients' definition
// in double precision.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/launch.h"
#include "shared/bfloat16.h"
#include "shared/conv_geometry.h"
#include "tests/emulator/random.h"

namespace privimage {

using emulator::Random;

struct Shape {
  int64_t examples, draws, height, width, inputs, outputs;
  int64_t stride = 1, padding = -1;  // -1: as much as keeps the size at stride 1
};

inline ConvGeometry geometry_of(int side, const Shape& shape) {
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

}  // namespace privimage
