// Several layers in one launch of the tiled CUDA kernel of the per-example weight gradient,
// emulated.
#include <cmath>
#include <memory>
#include <vector>

#include "tests/emulator/emulated_conv.h"

namespace privimage {
namespace {

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
    layers.push_back(draw_fractions<Scalar>(geometry_of(1, shape), {layers.size() + 1}));
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
  launch<Tile>(jobs, whole, 1);
  int64_t first = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Result alone = emulate<Tile>(layers[i], {true, true, false, false}, i + 1);
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
  privimage::layers_of_one_launch_are_those_alone<privimage::Bf16Math>();
  privimage::layers_of_one_launch_are_those_alone<privimage::Fp32Math>();
}
