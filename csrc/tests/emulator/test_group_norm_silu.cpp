// The CUDA kernels of the fused normalisation, emulated, against float64 on ragged shapes.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/group_norm_silu.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

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

int64_t place(const GroupNormShape& shape, int64_t row, int64_t channel, int64_t pixel) {
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

void matches_the_definition() {
  uint64_t seed = 0;
  for (bool silu : {true, false}) {
    // examples, draws, channels, pixels, groups, channels last
    matches<Bfloat16>({2, 2, 32, 49, 8, true, silu}, true, ++seed);
    matches<Bfloat16>({1, 1, 96, 30, 24, true, silu}, true, ++seed);   // three slabs
    matches<Bfloat16>({1, 2, 48, 17, 16, true, silu}, true, ++seed);   // threads without a column
    matches<Bfloat16>({1, 1, 312, 5, 104, true, silu}, true, ++seed);  // the last slab is narrower
    matches<Bfloat16>({1, 2, 384, 7, 1, true, silu}, true, ++seed);  // more columns than a warp has
    matches<Bfloat16>({1, 3, 8, 400, 2, true, silu}, true, ++seed);  // more pixels than threads
    matches<Bfloat16>({2, 2, 6, 48, 3, false, silu}, true, ++seed);
    matches<Bfloat16>({1, 2, 10, 15, 5, true, silu}, false, ++seed);  // channels no multiple of 8
    matches<Bfloat16>({1, 2, 6, 35, 2, false, silu}, false, ++seed);  // nor pixels
    matches<Bfloat16>({1, 2, 16, 24, 4, true, silu}, false, ++seed, false);
    matches<float>({2, 2, 32, 49, 8, true, silu}, true, ++seed);
    matches<float>({1, 2, 36, 10, 3, true, silu}, true, ++seed);
    matches<float>({2, 1, 6, 28, 3, false, silu}, true, ++seed);
    matches<float>({1, 2, 5, 1100, 1, false, silu}, true, ++seed);
    matches<float>({1, 2, 40, 24, 2, false, silu}, true, ++seed);  // a warp has several columns
    matches<float>({2, 3, 7, 9, 7, true, silu}, false, ++seed);
    matches<double>({1, 2, 12, 13, 4, true, silu}, false, ++seed);
    matches<double>({2, 2, 9, 20, 3, false, silu}, false, ++seed);
    matches<float>({1, 1, 300, 3, 1, true, silu}, true, ++seed);
    matches<float>({1, 1, 600, 1, 2, false, silu}, false, ++seed);  // more columns than threads
  }
  matches<float>({0, 2, 8, 4, 2, true, true}, true, ++seed);
  matches<float>({2, 0, 8, 4, 2, true, true}, true, ++seed);
  matches<float>({2, 2, 8, 0, 2, true, true}, true, ++seed);
  matches<double>({2, 2, 0, 5, 2, false, true}, false, ++seed);
}

// Activations are read once and written once, in whole sectors; and the unit that loads and stores,
// a pass for each 128 bytes of shared memory or line of global memory, is done before the bus is,
// which brings a multiprocessor of an H100 15 bytes a clock.
void memory_is_read_once_and_bounds() {
  using emulator::Access;
  for (const GroupNormShape& shape : {GroupNormShape{1, 1, 64, 1024, 16, true, true},
                                      GroupNormShape{1, 1, 128, 64, 32, true, true}}) {
    const Result<Bfloat16> found = run(draw<Bfloat16>(shape, {1}), 1, true, false);
    const int64_t sectors = shape.channels * shape.pixels * int64_t{sizeof(Bfloat16)} / 32;
    for (int arrays : {1, 2}) {
      const emulator::TrafficCounter& traffic = found.traffic[arrays - 1];
      const emulator::Traffic &from = traffic.of(Access::kGlobalLoad),
                              &to = traffic.of(Access::kGlobalStore);
      CHECK(from.taken == arrays * sectors && to.taken == sectors);
      const emulator::Traffic &loads = traffic.of(Access::kSharedLoad),
                              &stores = traffic.of(Access::kSharedStore);
      CHECK(loads.ratio() <= 1.6 && stores.ratio() <= 1.6);
      const int64_t passes = loads.taken + stores.taken + from.lines + to.lines;
      CHECK(passes <= (arrays + 1) * sectors * 32 / 15);
    }
  }
}

// What is not finite stays in its example.
void examples_do_not_touch_each_other() {
  Layer<float> layer = draw<float>({3, 2, 8, 20, 2, true, true}, {5});
  const Result<float> clean = run(layer, 1, true, false);
  const int64_t values = 2 * 8 * 20;
  layer.x[values + 3] = std::numeric_limits<float>::infinity();
  layer.grad[values + 9] = std::numeric_limits<float>::quiet_NaN();
  const Result<float> mixed = run(layer, 2, true, false);
  for (int64_t i = 0; i < values; ++i) {
    for (int64_t example : {0, 2}) {
      CHECK(mixed.y[example * values + i] == clean.y[example * values + i]);
      CHECK(mixed.grad_x[example * values + i] == clean.grad_x[example * values + i]);
    }
  }
  for (int64_t c = 0; c < 8; ++c) {
    CHECK(mixed.grad_weight[c] == clean.grad_weight[c]);
    CHECK(mixed.grad_weight[2 * 10 + c] == clean.grad_weight[2 * 10 + c]);
  }
  CHECK(!std::isfinite(mixed.grad_weight[10]));
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::matches_the_definition();
  privimage::memory_is_read_once_and_bounds();
  privimage::examples_do_not_touch_each_other();
}
