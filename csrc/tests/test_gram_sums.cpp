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

void close(double found, double expected, double size) {
  CHECK(std::abs(found - expected) <= 1e-12 * size);
}

// An axis with room for its taps.
ConvAxis any_axis(Random& random) {
  ConvAxis axis{upto(random, 1, 7), 0, upto(random, 1, 4), upto(random, 1, 3), upto(random, 0, 3),
                upto(random, 1, 2)};
  const int64_t reach = axis.inputs + 2 * axis.padding - axis.dilation * (axis.taps - 1) - 1;
  axis.outputs = reach < 0 ? 0 : reach / axis.stride + 1;
  return axis.outputs > 0 ? axis : any_axis(random);
}

// What output position `at` of an example reads, zeros in the padding, and a 1 for the bias.
template <typename Scalar>
std::vector<double> patch(const ConvGeometry& shape, const Scalar* x, int64_t at, bool with_bias) {
  const ConvAxis &height = shape.height, &width = shape.width;
  const int64_t w = at % width.outputs, h = at / width.outputs % height.outputs;
  const Scalar* image =
      x + at / width.outputs / height.outputs * shape.inputs * height.inputs * width.inputs;
  std::vector<double> values(with_bias, 1.0);
  for (int64_t i = 0; i < height.taps * width.taps * shape.inputs; ++i) {
    const int64_t c = i % shape.inputs, tap = i / shape.inputs;
    const int64_t y = input_position(height, h, tap / width.taps);
    const int64_t z = input_position(width, w, tap % width.taps);
    const bool is_inside = y >= 0 && y < height.inputs && z >= 0 && z < width.inputs;
    values.push_back(is_inside ? image[(c * height.inputs + y) * width.inputs + z] : 0.0);
  }
  return values;
}

double dot(const std::vector<double>& one, const std::vector<double>& other) {
  double sum = 0.0;
  for (size_t i = 0; i < one.size(); ++i) sum += one[i] * other[i];
  return sum;
}

template <typename Scalar>
void sums_are_those_of_the_formula(Random& random) {
  const int64_t inputs = upto(random, 1, random() % 8 == 0 ? 300 : 37);
  ConvGeometry shape{upto(random, 0, 3), upto(random, 1, 2), 1, inputs, upto(random, 1, 21),
                     any_axis(random),   any_axis(random)};
  const int64_t area = shape.height.inputs * shape.width.inputs;
  const int64_t places = shape.height.outputs * shape.width.outputs;
  const int64_t rows = shape.examples * shape.draws, positions = shape.draws * places;
  const auto x = normals<Scalar>(random, rows * shape.inputs * area);
  const auto grad = normals<Scalar>(random, rows * shape.outputs * places);
  const bool with_bias = random() % 2 == 0;
  std::vector<double> expected(4 * shape.examples);
  for (int64_t example = 0; example < shape.examples; ++example) {
    const Scalar* image = x.data() + example * shape.draws * shape.inputs * area;
    std::vector<std::vector<double>> patches, slopes;
    for (int64_t t = 0; t < positions; ++t) {
      patches.push_back(patch(shape, image, t, with_bias));
      const int64_t row = example * shape.draws + t / places;
      std::vector<double> slope;
      for (int64_t c = 0; c < shape.outputs; ++c) {
        slope.push_back(grad[(row * shape.outputs + c) * places + t % places]);
      }
      slopes.push_back(slope);
    }
    for (int64_t t = 0; t < positions; ++t) {
      const double length = std::sqrt(dot(patches[t], patches[t]));
      const double steepness = std::sqrt(dot(slopes[t], slopes[t]));
      const double of_one[4] = {0.0, length * steepness, length, steepness};
      for (int64_t i = 0; i < 4; ++i) expected[i * shape.examples + example] += of_one[i];
      for (int64_t s = 0; s < positions; ++s) {
        expected[example] += dot(patches[t], patches[s]) * dot(slopes[t], slopes[s]);
      }
    }
  }
  for (const cpu::TileSet<double>* set = cpu::tile_sets<double>(); set->lanes > 0; ++set) {
    std::vector<double> found(4 * shape.examples, NAN);
    const ImageStrides of_x{shape.inputs * area, area, shape.width.inputs, 1};
    const ImageStrides of_grad{shape.outputs * places, places, shape.width.outputs, 1};
    const cpu::GramSums<Scalar> job{shape,   x.data(),     of_x,     grad.data(),
                                    of_grad, found.data(), with_bias};
    cpu::gram_sums(job, 0, shape.examples / 2, *set);
    cpu::gram_sums(job, shape.examples / 2, shape.examples, *set);
    for (int64_t i = 0; i < 4 * shape.examples; ++i) {
      const double length = expected[shape.examples + i % shape.examples];
      close(found[i], expected[i], i < shape.examples ? length * length : expected[i]);
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
    entries_are_those_of_tables<float>(random);
    entries_are_those_of_tables<double>(random);
  }
}
