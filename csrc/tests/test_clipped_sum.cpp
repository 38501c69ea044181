// The clipped sum on the CPU against the definition, on ragged shapes and in any split.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/clipped_sum.h"

using privimage::ClippedSum;

template <typename Scalar>
std::vector<int64_t> run(const std::vector<Scalar>& parts, int64_t examples, int64_t parameters,
                         double clip, int64_t split) {
  std::vector<double> scales(examples, std::nan(""));
  std::vector<int64_t> sum(parameters, std::numeric_limits<int64_t>::min());
  const ClippedSum<Scalar> job{parts.data(), scales.data(), sum.data(), examples,
                               parameters,   parameters,    {clip}};
  for (int64_t begin = 0; begin < examples; begin += split) {
    privimage::cpu::clipped_sum_scales(job, begin, std::min(begin + split, examples));
  }
  for (int64_t begin = 0; begin < parameters; begin += split) {
    privimage::cpu::clipped_sum_sums(job, begin, std::min(begin + split, parameters));
  }
  return sum;
}

template <typename Scalar>
void matches_the_definition() {
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  const double clip = 0.7;
  for (int64_t examples : {0, 1, 2, 9}) {
    for (int64_t parameters : {0, 1, 15, 16, 17, 1023, 1024, 1025, 3001}) {
      std::vector<Scalar> parts(examples * parameters);
      for (Scalar& value : parts) value = Scalar(0.1 * normal(random));
      if (examples > 1 && parameters > 0)
        parts[parameters] = std::numeric_limits<Scalar>::infinity();
      std::vector<int64_t> expected(parameters);
      for (int64_t example = 0; example < examples; ++example) {
        if (example == 1) continue;
        long double squares = 0.0L;
        for (int64_t i = 0; i < parameters; ++i) {
          const long double value = parts[example * parameters + i];
          squares += value * value;
        }
        const double scale = privimage::grid_scale(double(squares), {clip});
        for (int64_t i = 0; i < parameters; ++i) {
          expected[i] += privimage::grid_coordinate(parts[example * parameters + i], scale);
        }
      }
      const auto whole = run(parts, examples, parameters, clip, 1 << 20);
      for (int64_t i = 0; i < parameters; ++i) {
        CHECK(std::abs(whole[i] - expected[i]) <= examples);
      }
      CHECK(whole == run(parts, examples, parameters, clip, 7));
    }
  }
}

int main() {
  matches_the_definition<float>();
  matches_the_definition<double>();
}
