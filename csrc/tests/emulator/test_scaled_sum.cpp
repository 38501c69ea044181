// The CUDA kernels of kept gradients' norms and scaled sum, emulated, against the definition.
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/scaled_sum.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

using cuda::Block;
using emulator::Guarded;
using emulator::Random;

constexpr double kScales[] = {3.0, 0.0, 1.75, 0x1p20 / 3, -2.5};

// Rows with a value beside them that is another layer's. Multiples of 1/64, which bfloat16 holds
// and whose squares add up exactly, in whatever order.
template <typename Scalar>
std::vector<Scalar> draw_parts(int64_t examples, int64_t parameters, uint64_t seed) {
  Random random{seed};
  std::vector<Scalar> parts(examples * (parameters + 1));
  for (Scalar& value : parts) value = narrow<Scalar>((int(random.next() % 129) - 64) / 64.0f);
  for (int64_t i = 0; i < examples; ++i) {
    parts[i * (parameters + 1) + parameters] = narrow<Scalar>(std::nanf(""));
  }
  return parts;
}

template <typename Kernel>
int emulate(const cuda::LaunchShape& shape, uint64_t seed, Kernel kernel) {
  CHECK(shape.empty() || shape.possible());
  if (shape.empty()) return 0;
  emulator::run({shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, seed},
                [&](const Block& block) { kernel(block); });
  return 0;
}

// Of some ranges of columns together.
template <typename Scalar>
std::vector<double> norms_of(const KeptParts<Scalar>& kept, const std::vector<Columns>& columns,
                             uint64_t seed) {
  const int64_t count = int64_t(columns.size());
  const int64_t pieces = cuda::squared_norm_pieces(columns.data(), count);
  Guarded<double> partial(kept.examples * pieces), squares(kept.examples);
  cuda::for_each_launch(
      kept, columns.data(), count, partial.data(),
      [&](const auto& job, const cuda::LaunchShape& shape) {
        return emulate(shape, seed, [&](const Block& block) { cuda::write_squares(block, job); });
      });
  emulate(cuda::row_sums_launch(kept.examples), seed, [&](const Block& block) {
    cuda::add_row(block, {partial.data(), kept.examples, pieces, squares.data()});
  });
  std::vector<double> found;
  for (int64_t i = 0; i < kept.examples; ++i) found.push_back(squares[i]);
  return found;
}

template <typename Scalar>
void norms_and_sums_are_exact(int64_t examples, int64_t parameters, uint64_t seed) {
  const int64_t stride = parameters + 1;
  Guarded<Scalar> parts(draw_parts<Scalar>(examples, parameters, seed));
  const KeptParts<Scalar> kept{parts.data(), stride, examples, parameters};
  const std::vector<Columns> all{{0, parameters}};
  const std::vector<double> squares = norms_of(kept, all, seed);
  std::vector<double> factors;
  std::vector<int64_t> expected(parameters);
  for (int64_t example = 0; example < examples; ++example) {
    factors.push_back(kScales[example % 5]);
    double sum = 0.0;
    for (int64_t i = 0; i < parameters; ++i) {
      const double value = widen(parts[example * stride + i]);
      sum += value * value;
      expected[i] += int64_t(value * factors.back());
    }
    CHECK(squares[example] == sum);
  }
  if (examples > 1 && parameters > 0) {  // the example of scale 0
    parts.data()[stride] = narrow<Scalar>(std::numeric_limits<float>::infinity());
  }
  Guarded<double> scales(factors);
  Guarded<int64_t> sum(parameters);
  for (int64_t times : {1, 2}) {
    emulate(cuda::sums_launch(parameters), seed, [&](const Block& block) {
      cuda::write_sums(block, cuda::ScaledSum<Scalar>{kept, scales.data(), times == 2, sum.data()});
    });
    for (int64_t i = 0; i < parameters; ++i) CHECK(sum[i] == times * expected[i]);
  }
  if (examples > 1 && parameters > 0) CHECK(!std::isfinite(norms_of(kept, all, seed)[1]));
}

template <typename Scalar>
void everywhere() {
  uint64_t seed = 0;
  for (int64_t examples : {0, 1, 5, 8, 17}) {
    for (int64_t parameters : {0, 1, 30, 256, 257, 1024, 2049}) {
      norms_and_sums_are_exact<Scalar>(examples, parameters, ++seed);
    }
  }
  for (int64_t parameters : {cuda::kPiece, cuda::kPiece + 1, 2 * cuda::kPiece + 777}) {
    norms_and_sums_are_exact<Scalar>(2, parameters, ++seed);
  }
}

// As of layers that lie between others: empty ranges, such of two pieces, more than a launch takes.
void ranges_of_columns_are_added() {
  constexpr int64_t kExamples = 3, kParameters = 2 * cuda::kPiece;
  Guarded<float> parts(draw_parts<float>(kExamples, kParameters, 5));
  const KeptParts<float> kept{parts.data(), kParameters + 1, kExamples, kParameters};
  std::vector<Columns> columns{{0, 1}, {7, 7}, {9, cuda::kPiece + 40}};
  for (int64_t i = 0; i < 100; ++i) {
    const int64_t begin = cuda::kPiece + 50 + 9 * i;
    columns.push_back({begin, begin + i % 7});
  }
  CHECK(int64_t(columns.size()) > cuda::kMostRanges);
  const std::vector<double> squares = norms_of(kept, columns, 6);
  for (int64_t example = 0; example < kExamples; ++example) {
    double sum = 0.0;
    for (const Columns& range : columns) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        const double value = parts[example * kept.stride + i];
        sum += value * value;
      }
    }
    CHECK(squares[example] == sum);
  }
  CHECK(norms_of(kept, {}, 7) == std::vector<double>(kExamples));
}

// An example of scale 0 may hold anything.
void coordinates_are_those_of_the_grid() {
  const double scale = 0x1.fffffep29;
  CHECK(cuda::coordinate(0.3f, scale) == grid_coordinate(0.3f, scale));
  CHECK(cuda::coordinate(to_bfloat16(0.3f), scale) ==
        grid_coordinate(to_float(to_bfloat16(0.3f)), scale));
  CHECK(cuda::coordinate(0.3, scale) == grid_coordinate(0.3, scale));
  CHECK(cuda::coordinate(std::numeric_limits<float>::infinity(), 0.0) == 0);
  CHECK(cuda::coordinate(std::nanf(""), 0.0) == 0 && cuda::coordinate(std::nan(""), 0.0) == 0);
}

// More pieces than a block has threads: as of four million parameters.
void many_pieces_are_added() {
  std::vector<double> values(3 * 700);
  for (size_t i = 0; i < values.size(); ++i) values[i] = double(i);
  Guarded<double> partial(values), sums(3);
  emulate(cuda::row_sums_launch(3), 1,
          [&](const Block& block) { cuda::add_row(block, {partial.data(), 3, 700, sums.data()}); });
  for (int64_t row = 0; row < 3; ++row) {
    CHECK(sums[row] == 700.0 * double(row) * 700.0 + 699.0 * 350.0);
  }
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::everywhere<privimage::Bfloat16>();
  privimage::everywhere<float>();
  privimage::everywhere<double>();
  privimage::ranges_of_columns_are_added();
  privimage::coordinates_are_those_of_the_grid();
  privimage::many_pieces_are_added();
}
