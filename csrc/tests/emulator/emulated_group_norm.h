// Runs the CUDA kernels of the fused normalisation on a layer, emulated, in guarded memory, and
// holds what they wrote to the definition in double precision.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/group_norm_silu.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {

using cuda::Block;
using cuda::GroupNormPlan;
using emulator::Guarded;
using emulator::Random;

constexpr double kEps = 1e-5;

template <typename Scalar>
struct Layer {
  GroupNormShape shape;
  std::vector<Scalar> x, grad;
  std::vector<Wide<Scalar>> weight, bias;

  int64_t rows() const { return shape.examples * shape.draws; }
};

template <typename Scalar>
Layer<Scalar> draw(const GroupNormShape& shape, Random random) {
  const int64_t values = shape.examples * shape.draws * shape.channels * shape.pixels;
  Layer<Scalar> layer{shape, std::vector<Scalar>(values), std::vector<Scalar>(values),
                      std::vector<Wide<Scalar>>(shape.channels),
                      std::vector<Wide<Scalar>>(shape.channels)};
  // Far from 0, where squares of values instead of differences would lose their digits.
  for (Scalar& value : layer.x) value = narrow<Scalar>(2 * random.fraction() + 3);
  for (Scalar& value : layer.grad) value = narrow<Scalar>(random.fraction());
  for (auto& value : layer.weight) value = random.fraction() + 0.5f;
  for (auto& value : layer.bias) value = random.fraction();
  return layer;
}

struct Truth {
  std::vector<double> y, mean, rstd, grad_x, grad_weight, grad_bias;
};

inline int64_t place(const GroupNormShape& shape, int64_t row, int64_t channel, int64_t pixel) {
  const int64_t start = row * shape.channels * shape.pixels;
  return start +
         (shape.channels_last ? pixel * shape.channels + channel : channel * shape.pixels + pixel);
}

// The definition, in double precision.
template <typename Scalar>
Truth define(const Layer<Scalar>& layer) {
  const GroupNormShape& shape = layer.shape;
  const int64_t width = shape.channels / shape.groups;
  const double count = double(std::max<int64_t>(width * shape.pixels, 1));
  Truth truth;
  truth.y.resize(layer.x.size());
  truth.grad_x.resize(layer.x.size());
  truth.grad_weight.resize(shape.examples * shape.channels);
  truth.grad_bias.resize(shape.examples * shape.channels);
  for (int64_t row = 0; row < layer.rows(); ++row) {
    for (int64_t g = 0; g < shape.groups; ++g) {
      const auto over_group = [&](auto body) {
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          for (int64_t p = 0; p < shape.pixels; ++p) body(c, place(shape, row, c, p));
        }
      };
      double sum = 0.0, squares = 0.0, slopes = 0.0, products = 0.0;
      over_group([&](int64_t, int64_t i) { sum += widen(layer.x[i]); });
      const double mean = sum / count;
      over_group([&](int64_t, int64_t i) { squares += std::pow(widen(layer.x[i]) - mean, 2); });
      const double rstd = 1.0 / std::sqrt(squares / count + kEps);
      truth.mean.push_back(mean);
      truth.rstd.push_back(rstd);
      const auto normal = [&](int64_t i) { return (widen(layer.x[i]) - mean) * rstd; };
      const auto value = [&](int64_t c, int64_t i) {
        return normal(i) * layer.weight[c] + layer.bias[c];
      };
      const auto slope = [&](int64_t c, int64_t i) {
        const double v = value(c, i), s = 1.0 / (1.0 + std::exp(-v));
        return widen(layer.grad[i]) * (shape.silu ? s * (1.0 + v * (1.0 - s)) : 1.0);
      };
      over_group([&](int64_t c, int64_t i) {
        const double v = value(c, i);
        truth.y[i] = shape.silu ? v / (1.0 + std::exp(-v)) : v;
        slopes += slope(c, i) * layer.weight[c] / count;
        products += slope(c, i) * layer.weight[c] * normal(i) / count;
        truth.grad_weight[row / shape.draws * shape.channels + c] += slope(c, i) * normal(i);
        truth.grad_bias[row / shape.draws * shape.channels + c] += slope(c, i);
      });
      over_group([&](int64_t c, int64_t i) {
        truth.grad_x[i] = rstd * (slope(c, i) * layer.weight[c] - slopes - normal(i) * products);
      });
    }
  }
  return truth;
}

// What the kernel forwards and the one backwards asked of memory.
using Traffic = std::vector<emulator::TrafficCounter>;

template <typename Scalar>
struct Result {
  std::vector<Scalar> y, grad_x;
  std::vector<Wide<Scalar>> mean, rstd, grad_weight, grad_bias;
  GroupNormPlan plan;
  Traffic traffic;
};

template <typename T>
std::vector<T> copy(const Guarded<T>& from) {
  std::vector<T> to;
  for (int64_t i = 0; i < from.size(); ++i) to.push_back(from[i]);
  return to;
}

template <typename Job, typename Kernel>
emulator::Counters emulate(const cuda::LaunchShape& shape, const Job& job, uint64_t seed,
                           Kernel kernel) {
  CHECK(shape.empty() || shape.possible());
  return emulator::run({shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, seed},
                       [&](const Block& block) { kernel(block, job); });
}

// Runs what the launcher would: the kernel that the plan asks for.
template <typename Scalar, int kValues, bool kLast>
Traffic emulate_all(const cuda::GroupNormOnGpu<Scalar>& there,
                    cuda::GroupNormBackwardOnGpu<Scalar> back, uint64_t seed) {
  const GroupNormShape& shape = there.job.shape;
  const auto forward = emulate(cuda::group_norm_launch(shape, there.plan), there, seed,
                               [](const Block& block, const auto& job) {
                                 cuda::group_norm_forward<Scalar, kValues, kLast>(block, job);
                               });
  const auto backward = emulate(cuda::group_norm_launch(shape, back.plan), back, seed,
                                [](const Block& block, const auto& job) {
                                  cuda::group_norm_backward<Scalar, kValues, kLast>(block, job);
                                });
  emulate(cuda::affine_launch(shape), back, seed,
          [](const Block& block, const auto& job) { cuda::group_norm_affine(block, job); });
  return {forward.traffic, backward.traffic};
}

template <typename Scalar>
Result<Scalar> run(const Layer<Scalar>& layer, uint64_t seed, bool aligned, bool accumulate) {
  using Real = Wide<Scalar>;
  const GroupNormShape& shape = layer.shape;
  const int64_t groups = layer.rows() * shape.groups, stride = shape.channels + 2;
  Guarded<Scalar> x(layer.x), grad(layer.grad), y(layer.x.size()), grad_x(layer.x.size());
  Guarded<Real> weight(layer.weight), bias(layer.bias), mean(groups), rstd(groups);
  Guarded<Real> row_sums(2 * layer.rows() * shape.channels);
  const std::vector<Real> ones(shape.examples * stride, Real(1));
  Guarded<Real> for_weight(ones), for_bias(ones);
  const cuda::GroupNormOnGpu<Scalar> there{
      {shape, x.data(), weight.data(), bias.data(), y.data(), mean.data(), rstd.data(), kEps},
      cuda::plan_group_norm<Scalar>(shape, 1, aligned)};
  const cuda::GroupNormBackwardOnGpu<Scalar> back{{shape,
                                                   grad.data(),
                                                   x.data(),
                                                   mean.data(),
                                                   rstd.data(),
                                                   weight.data(),
                                                   bias.data(),
                                                   grad_x.data(),
                                                   {},
                                                   {},
                                                   {},
                                                   {},
                                                   {}},
                                                  {{for_weight.data(), nullptr, stride, accumulate},
                                                   {for_bias.data(), nullptr, stride, accumulate}},
                                                  cuda::plan_group_norm<Scalar>(shape, 2, aligned),
                                                  row_sums.data()};
  CHECK(there.plan.vectors == back.plan.vectors);
  constexpr int kValues = cuda::kVectorBytes / sizeof(Scalar);
  Traffic traffic;
  if (!there.plan.vectors) {
    traffic = emulate_all<Scalar, 1, false>(there, back, seed);
  } else if (shape.channels_last) {
    traffic = emulate_all<Scalar, kValues, true>(there, back, seed);
  } else {
    traffic = emulate_all<Scalar, kValues, false>(there, back, seed);
  }
  // Rows in bfloat16 are the same rounded.
  Guarded<Bfloat16> half(std::vector<Bfloat16>(ones.size(), to_bfloat16(1.0f)));
  cuda::GroupNormBackwardOnGpu<Scalar> into_half = back;
  into_half.rows = {{}, {nullptr, half.data(), stride, accumulate}};
  emulate(cuda::affine_launch(shape), into_half, seed,
          [](const Block& block, const auto& job) { cuda::group_norm_affine(block, job); });
  for (int64_t i = 0; i < half.size(); ++i) {
    CHECK(half[i].bits == to_bfloat16(float(for_bias[i])).bits);
  }
  for (int64_t example = 0; example < shape.examples; ++example) {
    for (int64_t i = shape.channels; i < stride; ++i) {
      CHECK(for_weight[example * stride + i] == 1 && for_bias[example * stride + i] == 1);
    }
  }
  return {copy(y),          copy(grad_x),   copy(mean), copy(rstd),
          copy(for_weight), copy(for_bias), there.plan, traffic};
}

template <typename T>
void close(const std::vector<T>& found, const std::vector<double>& expected, double tolerance) {
  CHECK(found.size() == expected.size());
  double most = 1.0;
  for (double value : expected) most = std::max(most, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(std::abs(widen(found[i]) - expected[i]) <= tolerance * most);
  }
}

// Statistics are of float32 or better whatever the activations are; those are rounded once more.
template <typename Scalar>
void matches(const GroupNormShape& shape, bool vectors, uint64_t seed, bool aligned = true) {
  const bool accumulate = seed % 2 == 0;
  const Layer<Scalar> layer = draw<Scalar>(shape, {seed});
  const Truth truth = define(layer);
  Result<Scalar> found = run(layer, seed, aligned, accumulate);
  CHECK(found.plan.vectors == vectors);
  const double precise = 64 * double(std::numeric_limits<Wide<Scalar>>::epsilon());
  const double stored = sizeof(Scalar) == 2 ? 0x1p-8 : precise;
  close(found.mean, truth.mean, precise);
  close(found.rstd, truth.rstd, precise);
  close(found.y, truth.y, stored);
  close(found.grad_x, truth.grad_x, stored);
  const auto rows = [&](const std::vector<Wide<Scalar>>& padded) {
    std::vector<Wide<Scalar>> kept;
    for (int64_t i = 0; i < int64_t(padded.size()); ++i) {
      if (i % (shape.channels + 2) < shape.channels) kept.push_back(padded[i] - accumulate);
    }
    return kept;
  };
  close(rows(found.grad_weight), truth.grad_weight, precise);
  close(rows(found.grad_bias), truth.grad_bias, precise);
  // Another order of the warps: the same bits.
  const Result<Scalar> again = run(layer, seed + 100, aligned, accumulate);
  CHECK(found.mean == again.mean && found.rstd == again.rstd);
  CHECK(found.grad_weight == again.grad_weight && found.grad_bias == again.grad_bias);
  for (size_t i = 0; i < found.y.size(); ++i) {
    CHECK(widen(found.y[i]) == widen(again.y[i]));
    CHECK(widen(found.grad_x[i]) == widen(again.grad_x[i]));
  }
}

}  // namespace privimage
