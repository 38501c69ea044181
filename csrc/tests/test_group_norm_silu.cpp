// Group normalisation and SiLU on the CPU against the definition, in both layouts and any split.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/group_norm_silu.h"

using namespace privimage;

template <typename Scalar>
struct Result {
  std::vector<Scalar> y, moments, grad_x, grad_weight, grad_bias;

  bool operator==(const Result& other) const {
    return y == other.y && grad_x == other.grad_x && grad_weight == other.grad_weight &&
           grad_bias == other.grad_bias;
  }
};

template <typename Scalar>
struct Case {
  GroupNormShape shape;
  std::vector<Scalar> x, grad, weight, bias;
};

int64_t place(const GroupNormShape& shape, int64_t row, int64_t channel, int64_t pixel) {
  const int64_t start = row * shape.channels * shape.pixels;
  return start +
         (shape.channels_last ? pixel * shape.channels + channel : channel * shape.pixels + pixel);
}

template <typename Scalar>
Result<Scalar> run(const Case<Scalar>& given, int64_t split) {
  const GroupNormShape& shape = given.shape;
  const int64_t rows = shape.examples * shape.draws;
  const Scalar nan = std::numeric_limits<Scalar>::quiet_NaN();
  Result<Scalar> made;
  made.y.assign(given.x.size(), nan);
  made.grad_x.assign(given.x.size(), nan);
  made.moments.assign(2 * rows * shape.groups, nan);
  made.grad_weight.assign(shape.examples * shape.channels, nan);
  made.grad_bias.assign(shape.examples * shape.channels, nan);
  Scalar *mean = made.moments.data(), *rstd = mean + rows * shape.groups;
  const GroupNormSilu<Scalar> job{
      shape, given.x.data(), given.weight.data(), given.bias.data(), made.y.data(), mean, rstd,
      1e-6};
  const GroupNormSiluBackward<Scalar> back{shape,
                                           given.grad.data(),
                                           given.x.data(),
                                           mean,
                                           rstd,
                                           given.weight.data(),
                                           given.bias.data(),
                                           made.grad_x.data(),
                                           made.grad_weight.data(),
                                           shape.channels,
                                           made.grad_bias.data(),
                                           shape.channels,
                                           false};
  for (int64_t begin = 0; begin < shape.examples; begin += split) {
    const int64_t end = std::min(begin + split, shape.examples);
    cpu::group_norm_silu(job, begin, end);
    cpu::group_norm_silu_backward(back, begin, end);
  }
  return made;
}

template <typename Scalar>
void check_against_the_definition(const Case<Scalar>& given, const Result<Scalar>& found) {
  const GroupNormShape& shape = given.shape;
  const int64_t width = shape.channels / shape.groups;
  const double count = double(width * shape.pixels);
  const double close = 3e3 * double(std::numeric_limits<Scalar>::epsilon());
  std::vector<double> for_weight(shape.examples * shape.channels), for_bias(for_weight);
  for (int64_t row = 0; row < shape.examples * shape.draws; ++row) {
    for (int64_t g = 0; g < shape.groups; ++g) {
      const auto over_group = [&](auto body) {
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
          for (int64_t p = 0; p < shape.pixels; ++p) body(c, place(shape, row, c, p));
        }
      };
      double sum = 0.0, squares = 0.0, slopes = 0.0, products = 0.0;
      over_group([&](int64_t, int64_t i) { sum += given.x[i]; });
      const double mean = sum / count;
      over_group([&](int64_t, int64_t i) { squares += std::pow(given.x[i] - mean, 2); });
      const double rstd = 1.0 / std::sqrt(squares / count + 1e-6);
      const auto normal = [&](int64_t i) { return (given.x[i] - mean) * rstd; };
      const auto slope = [&](int64_t c, int64_t i) {
        const double value = normal(i) * given.weight[c] + given.bias[c];
        const double s = 1.0 / (1.0 + std::exp(-value));
        return given.grad[i] * (shape.silu ? s * (1.0 + value * (1.0 - s)) : 1.0);
      };
      over_group([&](int64_t c, int64_t i) {
        const double value = normal(i) * given.weight[c] + given.bias[c];
        const double y = shape.silu ? value / (1.0 + std::exp(-value)) : value;
        CHECK(std::abs(found.y[i] - y) <= close);
        slopes += slope(c, i) * given.weight[c] / count;
        products += slope(c, i) * given.weight[c] * normal(i) / count;
        const int64_t at = row / shape.draws * shape.channels + c;
        for_weight[at] += slope(c, i) * normal(i);
        for_bias[at] += slope(c, i);
      });
      over_group([&](int64_t c, int64_t i) {
        const double expected =
            rstd * (slope(c, i) * given.weight[c] - slopes - normal(i) * products);
        CHECK(std::abs(found.grad_x[i] - expected) <= close * (1.0 + rstd));
      });
    }
  }
  for (size_t i = 0; i < for_weight.size(); ++i) {
    CHECK(std::abs(found.grad_weight[i] - for_weight[i]) <= close);
    CHECK(std::abs(found.grad_bias[i] - for_bias[i]) <= close);
  }
}

template <typename Scalar>
void matches_the_definition() {
  std::mt19937_64 random(4);
  std::normal_distribution<double> normal;
  const auto upto = [&](int64_t least, int64_t most) {
    return least + int64_t(random() % uint64_t(most - least + 1));
  };
  for (int trial = 0; trial < 60; ++trial) {
    Case<Scalar> given;
    const int64_t groups = upto(1, 4);
    given.shape = {upto(0, 3), upto(1, 3),         groups * upto(1, 9), upto(2, 300),
                   groups,     bool(random() % 2), bool(random() % 2)};
    const bool by_token = trial % 3 == 0;  // layer normalisation
    if (by_token) given.shape = {upto(0, 3), upto(1, 70), upto(1, 200), 1, 1, true, false};
    const GroupNormShape& shape = given.shape;
    given.x.resize(shape.examples * shape.draws * shape.channels * shape.pixels);
    given.grad.resize(given.x.size());
    given.weight.resize(shape.channels);
    given.bias.resize(shape.channels);
    for (auto* values : {&given.x, &given.grad, &given.weight, &given.bias}) {
      for (Scalar& value : *values) value = Scalar(normal(random));
    }
    const Result<Scalar> whole = run(given, 1 << 20);
    check_against_the_definition(given, whole);
    CHECK(whole == run(given, 1));
  }
}

void exponential_is_close() {
  for (float x = -87.0f; x <= 87.0f; x += 0.0137f) {
    const double expected = std::exp(double(x));
    CHECK(std::abs(cpu::exponential(x) - expected) <= 2e-7 * expected);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float beyond : {87.5f, 3e38f, infinity, std::nanf("")}) {
    CHECK(cpu::exponential(beyond) == cpu::exponential(87.0f));
    CHECK(cpu::exponential(-beyond) == cpu::exponential(-87.0f));
  }
}

int main() {
  exponential_is_close();
  matches_the_definition<float>();
  matches_the_definition<double>();
}
