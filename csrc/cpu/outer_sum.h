// The scaled sum of per-example weight gradients that are one outer product each, on the CPU, over
// a range of output channels: the caller brings the threads. They are those of a linear layer that
// each example goes through once.
//
// There a coordinate costs one multiplication, and most of the time goes into rounding it and
// adding it up. Coordinates of 32 bits are added to sums of 32 bits in registers, over as many
// examples as are sure not to overflow: no coordinate of an example is larger than that of its
// largest input and its largest gradient, since rounding keeps the order of numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/example_weight_grad_isa.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"
#include "shared/grid.h"

namespace privimage::cpu {

// Sums [groups * outputs, inputs, taps, taps] and [groups * outputs].
struct RecomputedSum {
  const double* scales;  // [examples]
  int64_t* weight_sum;
  int64_t* bias_sum;  // null where there is no bias
  bool accumulate;    // add to what they hold, instead of writing over it
};

template <typename Scalar>
class OuterSum {
 public:
  // Of the outputs begin … end - 1.
  OuterSum(const ExampleWeightGrad<Scalar>& job, const RecomputedSum& sums,
           const TileSet<Scalar>& set, int64_t begin, int64_t end)
      : job_(job), sums_(sums), set_(set), begin_(begin), end_(end), adds_(sums.accumulate) {
    const int64_t inputs = in_whole(job.geometry.inputs, set.outer_inputs);
    const int64_t outputs = in_whole(end - begin, kOuterRows);
    static thread_local Scratch<Scalar> scratch;
    x_ = scratch.at_least(kMostExamples * (inputs + outputs + 1));
    grad_ = x_ + kMostExamples * inputs;
    scales_ = grad_ + kMostExamples * outputs;
  }

  void run() {
    for (int64_t example = 0; example < job_.geometry.examples; ++example) {
      if (sums_.scales[example] != 0.0) take(example);
    }
    add_up();
    if (!adds_) write_zeros();
  }

 private:
  // Examples that are added up together, so that a panel of inputs stays in the first-level cache.
  static constexpr int64_t kMostExamples = 128;

  static int64_t in_whole(int64_t count, int64_t each) { return (count + each - 1) / each * each; }

  // Packs an example beside the others, which are added up before if there is no room for it.
  void take(int64_t example) {
    const ConvGeometry& shape = job_.geometry;
    const ImageStrides &xs = job_.x_strides, &gs = job_.grad_strides;
    const Scalar* x = job_.x + example * xs.row;
    const Scalar* grad = job_.grad + example * gs.row + begin_ * gs.channel;
    const double scale = sums_.scales[example];
    const int64_t most = grid_coordinate(
        set_.largest(x, shape.inputs, xs.channel) * set_.largest(grad, end_ - begin_, gs.channel),
        scale);
    if (count_ == kMostExamples || reach_ + most > std::numeric_limits<int32_t>::max()) add_up();
    pack(x, shape.inputs, xs.channel, set_.outer_inputs, x_);
    pack(grad, end_ - begin_, gs.channel, kOuterRows, grad_);
    scales_[count_++] = static_cast<Scalar>(scale);
    reach_ += most;
  }

  // Values -> to [panels, kMostExamples, width], zeros behind the last.
  void pack(const Scalar* values, int64_t count, int64_t stride, int64_t width, Scalar* to) const {
    to += count_ * width;
    for (int64_t first = 0; first < count; first += width, to += kMostExamples * width) {
      const int64_t some = std::min(width, count - first);
      for (int64_t i = 0; i < some; ++i) to[i] = values[(first + i) * stride];
      std::fill(to + some, to + width, Scalar(0));
    }
  }

  // Adds what was packed to the sums, or writes it.
  void add_up() {
    if (count_ == 0) return;
    const int64_t inputs = job_.geometry.inputs, width = set_.outer_inputs;
    for (int64_t input = 0; input < inputs; input += width) {
      const Scalar* x = x_ + input * kMostExamples;
      const int64_t columns = std::min(width, inputs - input);
      for (int64_t output = begin_; output < end_; output += kOuterRows) {
        const Scalar* grad = grad_ + (output - begin_) * kMostExamples;
        set_.add_outer({x, grad, scales_, count_}, std::min(kOuterRows, end_ - output), columns,
                       adds_, sums_.weight_sum + output * inputs + input, inputs);
      }
    }
    if (sums_.bias_sum) add_bias();
    adds_ = true;
    count_ = reach_ = 0;
  }

  void add_bias() {
    for (int64_t output = begin_; output < end_; ++output) {
      const int64_t at = output - begin_;
      const Scalar* grad = grad_ + at / kOuterRows * kOuterRows * kMostExamples + at % kOuterRows;
      int64_t sum = adds_ ? sums_.bias_sum[output] : 0;
      for (int64_t i = 0; i < count_; ++i) sum += grid_coordinate(grad[i * kOuterRows], scales_[i]);
      sums_.bias_sum[output] = sum;
    }
  }

  void write_zeros() {
    const int64_t inputs = job_.geometry.inputs;
    std::fill_n(sums_.weight_sum + begin_ * inputs, (end_ - begin_) * inputs, int64_t{0});
    if (sums_.bias_sum) std::fill_n(sums_.bias_sum + begin_, end_ - begin_, int64_t{0});
  }

  const ExampleWeightGrad<Scalar>& job_;
  const RecomputedSum& sums_;
  const TileSet<Scalar>& set_;
  const int64_t begin_, end_;
  bool adds_;          // or the sums are written for the first time
  int64_t count_ = 0;  // examples that are packed
  int64_t reach_ = 0;  // no coordinate's sum over them is larger
  Scalar* x_;          // [panels, kMostExamples, set_.outer_inputs]
  Scalar* grad_;       // [panels, kMostExamples, kOuterRows]
  Scalar* scales_;     // [kMostExamples]
};

}  // namespace privimage::cpu
