// The grid's promises, at the edges of double precision and of float32.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "shared/grid.h"

using privimage::ClipRule;
using privimage::grid_coordinate;
using privimage::grid_scale;

constexpr double kSteps = double(int64_t{1} << privimage::kGridBits);

void non_finite_norms_give_scale_zero() {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(grid_scale(infinity, {1.0}) == 0.0);
  CHECK(grid_scale(std::nan(""), {1.0}) == 0.0);
  CHECK(grid_scale(std::numeric_limits<double>::max(), {1.0}) == 0.0);
  CHECK(grid_scale(infinity, {1.0, 1.0, true, 0.01}) == 0.0);
  CHECK(grid_scale(std::nan(""), {1.0, 1.0, true, 0.01}) == 0.0);
}

void short_gradients_are_not_clipped() {
  CHECK(grid_scale(0.0, {1.0}) == kSteps);
  CHECK(grid_scale(0.25, {2.0}) == kSteps / 2.0);
  const double small = grid_scale(std::numeric_limits<double>::denorm_min(), {1e-3});
  CHECK(small <= kSteps / 1e-3 && small > kSteps / 1e-3 * (1 - 0x1p-23));
}

// So that a product of float32 values is rounded once.
void scales_are_normal_floats() {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 2000; ++trial) {
    const double squares = std::pow(10.0, 40 * normal(random));
    const double clip = std::pow(10.0, 15 * normal(random));
    const double share = std::min(1.0, std::pow(10.0, 5 * normal(random)));
    const double scale = grid_scale(squares, {clip, share});
    CHECK(scale == 0.0 || (std::isnormal(float(scale)) && float(scale) == scale));
    CHECK(scale * std::sqrt(squares) <= kSteps * share);
  }
  CHECK(grid_scale(0.0, {1e-38}) == std::numeric_limits<float>::max());
  CHECK(grid_scale(0x1p311, {1.0}) > 0.0 && grid_scale(0x1p313, {1.0}) == 0.0);
}

void rounding_is_towards_zero() {
  CHECK(grid_coordinate(0.999, 1.0) == 0);
  CHECK(grid_coordinate(-0.999, 1.0) == 0);
  CHECK(grid_coordinate(-1.5, 2.0) == -3);
  CHECK(grid_coordinate(1.75, 2.0) == 3);
}

// The norm, in grid steps, of what a gradient adds.
template <typename Scalar>
double added_norm(const std::vector<Scalar>& row, double squares, const ClipRule& rule) {
  const double scale = grid_scale(squares, rule);
  long double total = 0.0L;
  for (Scalar value : row) {
    const long double coordinate = grid_coordinate(value, scale);
    total += coordinate * coordinate;
  }
  return double(std::sqrt(total));
}

void shares_of_many_parts_stay_within_the_clip() {
  for (int parts = 1; parts <= 2000; ++parts) {
    const double share = 1.0 / std::sqrt(double(parts));
    const double norm = added_norm<float>({3.0f}, 9.0, {1.0, share});
    CHECK(norm * norm * parts <= kSteps * kSteps);
  }
}

void squares_that_underflow_are_normalised_safely() {
  const double norm = added_norm<double>({1e-200}, 0.0, {1e30, 1.0, true, 1e-30});
  CHECK(norm == 0.0);
  CHECK(added_norm<double>({1e-31}, 1e-62, {1e-30, 1.0, true, 1e-30}) <= kSteps / 11);
}

template <typename Scalar>
void norms_never_exceed_the_clip() {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 2000; ++trial) {
    const double clip = std::pow(10.0, 6 * normal(random) / 3);
    const double size = std::pow(10.0, 5 * normal(random));
    std::vector<Scalar> row(1 + random() % 300);
    double squares = 0.0;
    for (Scalar& value : row) {
      value = Scalar(size * normal(random));
      squares += double(value) * double(value);
    }
    const double norm = std::sqrt(squares);
    const double flat = added_norm(row, squares, {clip});
    CHECK(flat <= kSteps);
    CHECK(norm <= clip || flat > kSteps * (1 - 1e-5));
    const double share = std::sqrt(1.0 / (1 + random() % 9));
    const double part = added_norm(row, squares, {clip, share});
    CHECK(part <= kSteps * share);
    CHECK(norm <= clip * share || part > kSteps * share * (1 - 1e-5));
    const double stability = std::pow(10.0, 5 * normal(random));
    const double normalised = added_norm(row, squares, {clip, 1.0, true, stability});
    CHECK(normalised <= kSteps * norm / (norm + stability));
    CHECK(normalised > kSteps * (1 - 1e-5) * norm / (norm + stability) - std::sqrt(row.size()));
  }
}

int main() {
  non_finite_norms_give_scale_zero();
  short_gradients_are_not_clipped();
  rounding_is_towards_zero();
  scales_are_normal_floats();
  norms_never_exceed_the_clip<float>();
  norms_never_exceed_the_clip<double>();
  shares_of_many_parts_stay_within_the_clip();
  squares_that_underflow_are_normalised_safely();
}
