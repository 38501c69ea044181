// Runs the tiled CUDA kernel of the per-example weight gradient on a layer, emulated, in guarded
// memory: what it wrote, and what that took.
#pragma once

#include <vector>

#include "kernels/conv_weight_grad.cuh"
#include "tests/emulator/conv_layers.h"
#include "tests/emulator/guarded.h"

namespace privimage {

using cuda::Bf16Math;
using cuda::ConvTile;
using cuda::ConvWeightGrads;
using cuda::Fp32Math;
using cuda::LaunchShape;
using cuda::Tf32Math;
using emulator::Counters;
using emulator::Guarded;

template <typename Math>
using WideTile = ConvTile<Math, 3, 1, 64, 64>;
template <typename Math>
using NarrowTile = ConvTile<Math, 3, 1, 32, 32>;
template <typename Math>
using StridedTile = ConvTile<Math, 3, 2, 64, 64>;
template <typename Math>
using SingleTile = ConvTile<Math, 1, 1, 64, 64>;

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

}  // namespace privimage
