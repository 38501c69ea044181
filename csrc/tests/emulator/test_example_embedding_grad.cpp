// The CUDA kernels of an embedding's per-example gradient, emulated: tables against the CPU's bit
// by bit, norms and sums by entry against those of the tables.
#include <cmath>
#include <vector>

#include "cpu/example_embedding_grad.h"
#include "kernels/example_embedding_grad.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

using emulator::Guarded;
using emulator::Random;

constexpr int64_t kBeside = 3;  // values between the tables, that nobody may touch

template <typename Scalar>
void equals_the_cpu(int64_t examples, int64_t positions, int64_t entries, int64_t width,
                    int64_t padding, bool accumulate, uint64_t seed) {
  Random random{seed};
  std::vector<int64_t> drawn(examples * positions);
  for (int64_t& index : drawn) index = int64_t(random.next() % uint64_t(entries + 2)) - 1;
  std::vector<Scalar> slopes(examples * positions * width);
  for (Scalar& value : slopes) value = narrow<Scalar>(random.fraction());
  const int64_t stride = entries * width + kBeside;
  const std::vector<Wide<Scalar>> before(examples * stride, Wide<Scalar>(0.1f));
  Guarded<int64_t> indices(drawn);
  Guarded<Scalar> grad(slopes);
  Guarded<Wide<Scalar>> weight(before), expected(before);
  ExampleEmbeddingGrad<Scalar> job{indices.data(), grad.data(), expected.data(), stride,
                                   examples,       positions,   entries,         width,
                                   padding,        accumulate};
  cpu::example_embedding_grad(job, 0, examples);
  job.weight = weight.data();
  const cuda::LaunchShape launch = cuda::embedding_launch(examples, width);
  if (!launch.empty()) {
    emulator::run({launch.blocks_x, launch.blocks_y, launch.threads, launch.shared_bytes, seed},
                  [&](const cuda::Block& block) { cuda::embedding_grad(block, job); });
  }
  for (int64_t i = 0; i < weight.size(); ++i) CHECK(weight[i] == expected[i]);
  // And the CPU's is the definition.
  for (int64_t i = 0; i < expected.size(); ++i) {
    const int64_t example = i / stride, place = i % stride;
    Wide<Scalar> sum = accumulate || place >= entries * width ? before[i] : Wide<Scalar>(0);
    for (int64_t p = 0; p < positions && place < entries * width; ++p) {
      const int64_t at = example * positions + p;
      const bool is_here = indices[at] == place / width && indices[at] != padding;
      if (is_here) sum += widen(grad[at * width + place % width]);
    }
    CHECK(expected[i] == sum);
  }
}

// Scales of 0 are of examples that are not finite.
template <typename Scalar>
void by_entry_is_as_by_table(int64_t examples, int64_t positions, int64_t entries, int64_t width,
                             int64_t padding, uint64_t seed) {
  Random random{seed};
  std::vector<int64_t> drawn(examples * positions);
  for (int64_t& index : drawn) index = int64_t(random.next() % uint64_t(entries + 2)) - 1;
  std::vector<Scalar> slopes(examples * positions * width);
  for (Scalar& value : slopes) value = narrow<Scalar>(random.fraction());
  Guarded<int64_t> indices(drawn);
  Guarded<Scalar> grad(slopes);
  Guarded<Wide<Scalar>> tables(examples * entries * width);
  ExampleEmbeddingGrad<Scalar> read{indices.data(), grad.data(), tables.data(), entries * width,
                                    examples,       positions,   entries,       width,
                                    padding,        false};
  cpu::example_embedding_grad(read, 0, examples);
  read.weight = nullptr;
  std::vector<double> factors;
  for (int64_t i = 0; i < examples; ++i) factors.push_back(i % 3 == 1 ? 0.0 : 1e6 / double(i + 3));
  Guarded<double> squares(examples * positions), scales(factors);
  Guarded<int64_t> sum(std::vector<int64_t>(entries * width, 7));
  const auto run = [&](const cuda::EmbeddingByEntry<Scalar>& job) {
    const cuda::LaunchShape launch = cuda::by_entry_launch(job.read);
    if (launch.empty()) return;
    emulator::run({launch.blocks_x, launch.blocks_y, launch.threads, launch.shared_bytes, seed},
                  [&](const cuda::Block& block) { cuda::embedding_by_entry(block, job); });
  };
  run({read, squares.data(), nullptr, nullptr});
  for (int64_t example = 0; example < examples; ++example) {
    double found = 0.0, expected = 0.0;
    for (int64_t i = 0; i < positions; ++i) found += squares[example * positions + i];
    for (int64_t i = 0; i < entries * width; ++i) {
      expected += std::pow(double(tables[example * entries * width + i]), 2);
    }
    CHECK(std::abs(found - expected) <= 1e-13 * expected);
    if (factors[example] == 0.0 && positions * width > 0) {
      grad.data()[example * positions * width] = narrow<Scalar>(std::nanf(""));
    }
  }
  run({read, nullptr, scales.data(), sum.data()});
  for (int64_t i = 0; i < entries * width; ++i) {
    int64_t expected = 7;
    for (int64_t example = 0; example < examples; ++example) {
      if (factors[example] == 0.0) continue;
      expected += grid_coordinate(tables[example * entries * width + i], factors[example]);
    }
    CHECK(sum[i] == expected);
  }
}

template <typename Scalar>
void everywhere() {
  uint64_t seed = 0;
  for (int64_t padding : {-1, 2}) {
    by_entry_is_as_by_table<Scalar>(3, 8, 11, 32, padding, ++seed);
    by_entry_is_as_by_table<Scalar>(2, 9, 3, 130, padding, ++seed);
    by_entry_is_as_by_table<Scalar>(4, 1, 2, 5, padding, ++seed);
    by_entry_is_as_by_table<Scalar>(2, 0, 5, 7, padding, ++seed);
    by_entry_is_as_by_table<Scalar>(0, 4, 5, 7, padding, ++seed);
    by_entry_is_as_by_table<Scalar>(2, 4, 5, 0, padding, ++seed);
  }
  for (int64_t padding : {-1, 2}) {
    for (bool accumulate : {false, true}) {
      equals_the_cpu<Scalar>(3, 8, 11, 32, padding, accumulate, ++seed);
      equals_the_cpu<Scalar>(2, 5, 3, 66, padding, accumulate, ++seed);
      equals_the_cpu<Scalar>(1, 1, 4, 128, padding, accumulate, ++seed);
      equals_the_cpu<Scalar>(2, 0, 5, 7, padding, accumulate, ++seed);
      equals_the_cpu<Scalar>(0, 4, 5, 7, padding, accumulate, ++seed);
      equals_the_cpu<Scalar>(2, 4, 5, 0, padding, accumulate, ++seed);
    }
  }
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::everywhere<privimage::Bfloat16>();
  privimage::everywhere<float>();
  privimage::everywhere<double>();
}
