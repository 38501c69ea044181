// Gram sums on the CPU, by every instruction set this machine has, against the plain formula; and
// an embedding's gradients by entry, bit for bit those of its tables.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/example_embedding_grad.h"
#include "cpu/gram_sums.h"

using namespace privimage;

using Random = std::mt19937_64;

int64_t upto(Random& random, int64_t least, int64_t most) {
  return least + int64_t(random() % uint64_t(most - least + 1));
}

template <typename Scalar>
std::vector<Scalar> normals(Random& random, int64_t count) {
  std::normal_distribution<double> normal;
  std::vector<Scalar> values(count);
  for (Scalar& value : values) value = Scalar(normal(random));
  return values;
}

template <typename Scalar>
double dot(const std::vector<Scalar>& values, int64_t width, int64_t one, int64_t other) {
  double sum = 0.0;
  for (int64_t i = 0; i < width; ++i) {
    sum += double(values[one * width + i]) * double(values[other * width + i]);
  }
  return sum;
}

void close(double found, double expected, double size) {
  CHECK(std::abs(found - expected) <= 1e-12 * size);
}

template <typename Scalar>
void sums_are_those_of_the_formula(Random& random) {
  const int64_t examples = upto(random, 0, 3), positions = upto(random, 0, 11);
  const int64_t inputs = upto(random, 1, 37), outputs = upto(random, 1, 21);
  const auto x = normals<Scalar>(random, examples * positions * inputs);
  const auto grad = normals<Scalar>(random, examples * positions * outputs);
  std::vector<double> found(4 * examples, NAN);
  const bool with_bias = random() % 2 == 0;
  const cpu::GramSums<Scalar> job{x.data(),  grad.data(), found.data(), examples,
                                  positions, inputs,      outputs,      with_bias};
  cpu::gram_sums(job, 0, examples / 2);
  cpu::gram_sums(job, examples / 2, examples);
  for (int64_t example = 0; example < examples; ++example) {
    const int64_t first = example * positions;
    double sums[4] = {};
    for (int64_t t = first; t < first + positions; ++t) {
      const double length = std::sqrt(dot(x, inputs, t, t) + with_bias);
      const double slope = std::sqrt(dot(grad, outputs, t, t));
      sums[1] += length * slope;
      sums[2] += length;
      sums[3] += slope;
      for (int64_t s = first; s < first + positions; ++s) {
        sums[0] += (dot(x, inputs, t, s) + with_bias) * dot(grad, outputs, t, s);
      }
    }
    for (int64_t i = 0; i < 4; ++i) {
      close(found[i * examples + example], sums[i], i == 0 ? sums[1] * sums[1] : sums[i]);
    }
  }
}

template <typename Scalar>
void dots_are_the_same_everywhere(Random& random) {
  const int64_t width = upto(random, 1, 70);
  const auto rows = normals<Scalar>(random, cpu::kDotRows * width);
  const Scalar* pointers[cpu::kDotRows];
  for (int64_t i = 0; i < cpu::kDotRows; ++i) pointers[i] = rows.data() + i * width;
  for (const cpu::TileSet<Scalar>* set = cpu::tile_sets<Scalar>(); set->lanes > 0; ++set) {
    double found[cpu::kDotRows * cpu::kDotRows], one;
    set->dots_of_many(pointers, pointers, width, found);
    set->dots_of_one(pointers, pointers + 1, width, &one);
    CHECK(one == found[1]);
    for (int64_t i = 0; i < cpu::kDotRows * cpu::kDotRows; ++i) {
      const int64_t row = i / cpu::kDotRows, other = i % cpu::kDotRows;
      close(found[i], dot(rows, width, row, other),
            std::sqrt(dot(rows, width, row, row) * dot(rows, width, other, other)));
    }
  }
}

template <typename Scalar>
void entries_are_those_of_tables(Random& random) {
  const int64_t examples = upto(random, 0, 3), positions = upto(random, 0, 11);
  const int64_t entries = upto(random, 1, 6), width = upto(random, 1, 37);
  std::vector<int64_t> read(examples * positions);
  for (int64_t& index : read) index = upto(random, -1, entries);  // Some do not exist.
  const auto grad = normals<Scalar>(random, examples * positions * width);
  std::vector<Scalar> tables(examples * entries * width, Scalar(NAN));
  const ExampleEmbeddingGrad<Scalar> job{
      read.data(), grad.data(), tables.data(), entries * width,     examples,
      positions,   entries,     width,         upto(random, -1, 1), false};
  cpu::example_embedding_grad(job, 0, examples);
  std::vector<int64_t> order(examples * positions, -1);
  cpu::sort_by_entry(job, order.data(), 0, examples);
  std::vector<double> squares(examples), scales(examples);
  cpu::embedding_norms(job, order.data(), squares.data(), 0, examples);
  std::vector<int64_t> expected(entries * width), found(entries * width);
  for (int64_t example = 0; example < examples; ++example) {
    const Scalar* table = tables.data() + example * entries * width;
    const double square = cpu::sum_of_squares(table, entries * width);
    close(squares[example], square, square);
    scales[example] = random() % 3 == 0 ? 0.0 : 1e6;
    if (scales[example] == 0.0) continue;
    cpu::add_scaled(table, entries * width, scales[example], expected.data());
  }
  const int64_t half = width / 2;
  cpu::recomputed_embedding_sum(job, order.data(), scales.data(), found.data(), 0, half);
  cpu::recomputed_embedding_sum(job, order.data(), scales.data(), found.data(), half, width);
  CHECK(found == expected);
}

int main() {
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    sums_are_those_of_the_formula<float>(random);
    sums_are_those_of_the_formula<double>(random);
    dots_are_the_same_everywhere<float>(random);
    dots_are_the_same_everywhere<double>(random);
    entries_are_those_of_tables<float>(random);
    entries_are_those_of_tables<double>(random);
  }
}
