// The squared norm of a linear layer's gradient by Gram matrices on the CPU, over a range of
// examples: the caller brings the threads.
//
// The gradient is the sum over positions t of grad_t x_t', so its squared norm is that over pairs
// of positions of <x_t, x_s> <grad_t, grad_s>: cheap where positions are few and layers wide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/example_weight_grad_isa.h"

namespace privimage::cpu {

template <typename Scalar>
struct GramSums {
  const Scalar* x;     // [examples, positions, inputs], what the layer was given
  const Scalar* grad;  // [examples, positions, outputs], of its output
  double* sums;        // [4, examples]
  int64_t examples;
  int64_t positions;
  int64_t inputs;
  int64_t outputs;
  bool with_bias;  // as an input that is always 1
};

// The Gram matrices of one example, kDotRows x kDotRows at a time.
template <typename Scalar>
class ExampleGrams {
 public:
  ExampleGrams(const GramSums<Scalar>& job, int64_t example)
      : job_(job),
        x_(job.x + example * job.positions * job.inputs),
        grad_(job.grad + example * job.positions * job.outputs),
        side_(job.positions < kDotRows ? 1 : kDotRows) {}

  // Writes the example's four sums.
  void add_up(int64_t example) {
    for (int64_t first = 0; first < job_.positions; first += side_) {
      for (int64_t second = first; second < job_.positions; second += side_) block(first, second);
    }
    const double found[4] = {squares_, lengths_, x_lengths_, grad_lengths_};
    for (int64_t i = 0; i < 4; ++i) job_.sums[i * job_.examples + example] = found[i];
  }

 private:
  // All pairs of the positions from `first` on with those from `second` on.
  void block(int64_t first, int64_t second) {
    double of_x[kDotRows * kDotRows], of_grad[kDotRows * kDotRows];
    dots(x_, job_.inputs, first, second, of_x);
    dots(grad_, job_.outputs, first, second, of_grad);
    for (int64_t i = 0; i < side_ && first + i < job_.positions; ++i) {
      for (int64_t j = 0; j < side_ && second + j < job_.positions; ++j) {
        if (second + j < first + i) continue;  // Once as the other pair already.
        const double x = of_x[i * side_ + j] + (job_.with_bias ? 1.0 : 0.0);
        const double grad = of_grad[i * side_ + j];
        const bool same = first + i == second + j;
        squares_ += (same ? 1.0 : 2.0) * (x * grad);
        if (same) add_lengths(std::sqrt(x), std::sqrt(grad));
      }
    }
  }

  void add_lengths(double x, double grad) {
    lengths_ += x * grad;
    x_lengths_ += x;
    grad_lengths_ += grad;
  }

  // Beyond the last position stands the last one again; whoever asked passes over it.
  void dots(const Scalar* values, int64_t width, int64_t first, int64_t second, double* found) {
    const Scalar *rows[kDotRows], *others[kDotRows];
    for (int64_t i = 0; i < side_; ++i) {
      rows[i] = values + std::min(first + i, job_.positions - 1) * width;
      others[i] = values + std::min(second + i, job_.positions - 1) * width;
    }
    const TileSet<Scalar>& tiles = *tile_sets<Scalar>();
    (side_ == 1 ? tiles.dots_of_one : tiles.dots_of_many)(rows, others, width, found);
  }

  const GramSums<Scalar>& job_;
  const Scalar *x_, *grad_;
  const int64_t side_;
  double squares_ = 0.0, lengths_ = 0.0, x_lengths_ = 0.0, grad_lengths_ = 0.0;
};

// Writes the sums of the examples begin … end - 1: over pairs of positions of
// <x_t, x_s> <grad_t, grad_s>, and over positions of |x_t| |grad_t|, of |x_t| and of |grad_t|.
template <typename Scalar>
inline void gram_sums(const GramSums<Scalar>& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) ExampleGrams<Scalar>(job, i).add_up(i);
}

}  // namespace privimage::cpu
