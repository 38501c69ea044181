// The grid's promises, at the edges of double precision.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "shared/grid.h"

using privimage::grid_coordinate;
using privimage::grid_scale;

constexpr double kSteps = double(int64_t{1} << privimage::kGridBits);

void non_finite_norms_give_scale_zero() {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(grid_scale(infinity, 1.0) == 0.0);
  CHECK(grid_scale(std::nan(""), 1.0) == 0.0);
  CHECK(grid_scale(std::numeric_limits<double>::max(), 1.0) > 0.0);
}

void short_gradients_are_not_clipped() {
  CHECK(grid_scale(0.0, 1.0) == kSteps);
  CHECK(grid_scale(0.25, 2.0) == kSteps / 2.0);
  CHECK(grid_scale(std::numeric_limits<double>::denorm_min(), 1e-3) == kSteps / 1e-3);
}

void rounding_is_towards_zero() {
  CHECK(grid_coordinate(0.999, 1.0) == 0);
  CHECK(grid_coordinate(-0.999, 1.0) == 0);
  CHECK(grid_coordinate(-1.5, 2.0) == -3);
  CHECK(grid_coordinate(1.75, 2.0) == 3);
}

void norms_never_exceed_the_clip() {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 2000; ++trial) {
    const double clip = std::pow(10.0, 6 * normal(random) / 3);
    const double size = std::pow(10.0, 5 * normal(random));
    std::vector<double> row(1 + random() % 300);
    double squares = 0.0;
    for (double& value : row) {
      value = float(size * normal(random));
      squares += value * value;
    }
    const double scale = grid_scale(squares, clip);
    long double total = 0.0L;
    for (double value : row) {
      const long double coordinate = grid_coordinate(value, scale);
      total += coordinate * coordinate;
    }
    CHECK(total <= (long double)kSteps * kSteps);
    const bool clipped = std::sqrt(squares) > clip;
    CHECK(!clipped || std::sqrt(total) > kSteps * (1 - 1e-5));
  }
}

int main() {
  non_finite_norms_give_scale_zero();
  short_gradients_are_not_clipped();
  rounding_is_towards_zero();
  norms_never_exceed_the_clip();
}
