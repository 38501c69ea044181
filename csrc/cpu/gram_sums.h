// The squared norm of a weight gradient by Gram matrices on the CPU, over a range of examples: the
// caller brings the threads.
//
// With u_t for the patch of the input that output position t reads, the gradient is the sum over t
// of grad_t u_t', so its squared norm is that over pairs of positions of <u_t, u_s> <grad_t,
// grad_s>: cheap where positions are few and layers wide. A tap moves both positions alike, so
// <u_t, u_s> is a sum over taps of products of two pixels, each of which is computed once. With a
// stride, a pixel meets only those whose distance it divides, through the taps that read them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/example_weight_grad_isa.h"
#include "cpu/scratch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

template <typename Scalar>
struct GramSums {
  ConvGeometry geometry;  // of one group
  const Scalar* x;        // [examples * draws, inputs, height, width], the layer's input
  ImageStrides x_strides;
  const Scalar* grad;  // [examples * draws, outputs, height', width'], of its output
  ImageStrides grad_strides;
  double* sums;    // [4, examples]
  bool with_bias;  // as an input that is always 1
};

// Of an example's output.
inline int64_t positions(const ConvGeometry& shape) {
  return shape.draws * shape.height.outputs * shape.width.outputs;
}

// Of an example's input, at most, that the same taps read.
inline int64_t pixels_of_a_stride(const ConvGeometry& shape) {
  const ConvAxis &height = shape.height, &width = shape.width;
  return shape.draws * ((height.inputs + height.stride - 1) / height.stride) *
         ((width.inputs + width.stride - 1) / width.stride);
}

// Pixels of an example's draws, in order, and where their channels lie.
template <typename Scalar>
struct PixelGrid {
  const Scalar* values;
  ImageStrides strides;
  int64_t draws, height, width, channels;

  int64_t pixels() const { return draws * height * width; }

  const Scalar* at(int64_t pixel) const {
    const int64_t row = pixel / width;
    return values + row / height * strides.row + row % height * strides.height +
           pixel % width * strides.width;
  }
};

// How a tap leads from output positions to the pixels of a grid.
struct TapShift {
  int64_t draws;
  int64_t height, width;  // of the output
  Range rows, columns;    // of the output, that read inside the grid
  int64_t grid_height, grid_width;
  int64_t down, right;  // from an output position to its pixel
};

// Adds to each pair of positions t <= s, to[t * pitch + s], that of the pixels that they read.
PRIVIMAGE_CLONES void add_shifted(const double* __restrict__ from, int64_t from_pitch,
                                  const TapShift& tap, double* __restrict__ to, int64_t pitch) {
  const int64_t rows = tap.draws * tap.height;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t draw = row / tap.height, h = row % tap.height;
    if (h < tap.rows.begin || h >= tap.rows.end) continue;
    for (int64_t w = tap.columns.begin; w < tap.columns.end; ++w) {
      double* sums = to + (row * tap.width + w) * pitch;
      const int64_t pixel = (draw * tap.grid_height + h + tap.down) * tap.grid_width;
      const double* products = from + (pixel + w + tap.right) * from_pitch;
      int64_t begin = w, h2 = h;
      for (int64_t draw2 = draw; draw2 < tap.draws; ++draw2, h2 = tap.rows.begin) {
        for (; h2 < tap.rows.end; ++h2, begin = tap.columns.begin) {
          const int64_t at = (draw2 * tap.height + h2) * tap.width;
          const int64_t read =
              (draw2 * tap.grid_height + h2 + tap.down) * tap.grid_width + tap.right;
          for (int64_t i = begin; i < tap.columns.end; ++i) sums[at + i] += products[read + i];
        }
      }
    }
  }
}

// The sum of products, in an order that `count` decides.
PRIVIMAGE_CLONES double inner_product(const double* one, const double* other, int64_t count) {
  constexpr int64_t kLanes = 8;
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += one[i + lane] * other[i + lane];
  }
  for (int64_t lane = 0; i + lane < count; ++lane) sums[lane] += one[i + lane] * other[i + lane];
  double sum = 0.0;
  for (double each : sums) sum += each;
  return sum;
}

// Works on one example after the other.
template <typename Scalar>
class GramMatrices {
 public:
  GramMatrices(const GramSums<Scalar>& job, const TileSet<double>& tiles)
      : job_(job),
        shape_(job.geometry),
        tiles_(tiles),
        positions_(positions(shape_)),
        panel_(positions_ <= tiles_.lanes ? tiles_.lanes : 2 * tiles_.lanes),
        pitch_(padded(positions_)) {
    const int64_t pixels = padded(pixels_of_a_stride(shape_));
    const int64_t packed = std::max(pixels * shape_.inputs, pitch_ * shape_.outputs);
    static thread_local Scratch<double> scratch;
    patches_ = scratch.at_least((positions_ + panel_) * pitch_ + pixels * pixels + packed);
    rows_ = patches_ + positions_ * pitch_;
    pixels_ = rows_ + panel_ * pitch_;
    packed_ = pixels_ + pixels * pixels;
  }

  // Writes the example's four sums.
  void add_up(int64_t example) {
    if (is_outer_product(shape_)) return multiply(example);
    find_patches(example);
    const ConvAxis &height = shape_.height, &width = shape_.width;
    const PixelGrid<Scalar> grid{job_.grad + example * shape_.draws * job_.grad_strides.row,
                                 job_.grad_strides,
                                 shape_.draws,
                                 height.outputs,
                                 width.outputs,
                                 shape_.outputs};
    pack(grid);
    double squares = 0.0, lengths = 0.0, x_lengths = 0.0, grad_lengths = 0.0;
    for (int64_t first = 0; first < positions_; first += panel_) {
      products(grid, first, rows_, pitch_);
      for (int64_t t = first; t < std::min(first + panel_, positions_); ++t) {
        const double* of_x = patches_ + t * pitch_ + t;
        const double* of_grad = rows_ + (t - first) * pitch_ + t;
        const int64_t others = positions_ - t - 1;
        squares += of_x[0] * of_grad[0] + 2.0 * inner_product(of_x + 1, of_grad + 1, others);
        const double x = std::sqrt(of_x[0]), grad = std::sqrt(of_grad[0]);
        lengths += x * grad;
        x_lengths += x;
        grad_lengths += grad;
      }
    }
    write(example, squares, lengths, x_lengths, grad_lengths);
  }

 private:
  void write(int64_t example, double squares, double lengths, double x, double grad) const {
    const double found[4] = {squares, lengths, x, grad};
    for (int64_t i = 0; i < 4; ++i) job_.sums[i * shape_.examples + example] = found[i];
  }

  // The sums of an example that has one position.
  void multiply(int64_t example) {
    const ImageStrides &xs = job_.x_strides, &gs = job_.grad_strides;
    const double x = squared_length(job_.x + example * xs.row, shape_.inputs, xs.channel) +
                     (job_.with_bias ? 1.0 : 0.0);
    const double grad = squared_length(job_.grad + example * gs.row, shape_.outputs, gs.channel);
    write(example, x * grad, std::sqrt(x) * std::sqrt(grad), std::sqrt(x), std::sqrt(grad));
  }

  double squared_length(const Scalar* values, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) packed_[i] = values[i * stride];
    return tiles_.squared_norm(packed_, count);
  }

  // Channels of two panels that stay in the first-level cache.
  static constexpr int64_t kChunk = 128;

  int64_t padded(int64_t count) const { return (count + panel_ - 1) / panel_ * panel_; }

  // Which pixel of a stride a tap reads.
  static int64_t residue(const ConvAxis& axis, int64_t tap) {
    const int64_t rest = input_position(axis, 0, tap) % axis.stride;
    return rest < 0 ? rest + axis.stride : rest;
  }

  // Calls body(tap) for each tap that reads pixels which none before it reads.
  template <typename Body>
  static void for_each_residue(const ConvAxis& axis, Body body) {
    for (int64_t tap = 0; tap < axis.taps; ++tap) {
      bool is_new = residue(axis, tap) < axis.inputs;
      for (int64_t other = 0; other < tap; ++other) {
        is_new = is_new && residue(axis, other) != residue(axis, tap);
      }
      if (is_new) body(residue(axis, tap));
    }
  }

  // Writes <u_t, u_s> for t <= s.
  void find_patches(int64_t example) {
    std::fill_n(patches_, positions_ * pitch_, job_.with_bias ? 1.0 : 0.0);
    const Scalar* x = job_.x + example * shape_.draws * job_.x_strides.row;
    for_each_residue(shape_.height, [&](int64_t top) {
      for_each_residue(shape_.width, [&](int64_t left) { add_pixels(x, top, left); });
    });
  }

  // Adds what the taps give that read the pixels at `top` and `left` of each stride.
  void add_pixels(const Scalar* x, int64_t top, int64_t left) {
    const ConvAxis &height = shape_.height, &width = shape_.width;
    const ImageStrides& from = job_.x_strides;
    const PixelGrid<Scalar> grid{
        x + top * from.height + left * from.width,
        {from.row, from.channel, from.height * height.stride, from.width * width.stride},
        shape_.draws,
        (height.inputs - top + height.stride - 1) / height.stride,
        (width.inputs - left + width.stride - 1) / width.stride,
        shape_.inputs};
    pack(grid);
    const int64_t pitch = padded(grid.pixels());
    for (int64_t first = 0; first < grid.pixels(); first += panel_) {
      products(grid, first, pixels_ + first * pitch, pitch);
    }
    for (int64_t h = 0; h < height.taps; ++h) {
      for (int64_t w = 0; w < width.taps; ++w) {
        if (residue(height, h) != top || residue(width, w) != left) continue;
        const TapShift tap{shape_.draws,
                           height.outputs,
                           width.outputs,
                           inside(height, h),
                           inside(width, w),
                           grid.height,
                           grid.width,
                           (input_position(height, 0, h) - top) / height.stride,
                           (input_position(width, 0, w) - left) / width.stride};
        add_shifted(pixels_, pitch, tap, patches_, pitch_);
      }
    }
  }

  // Pixels -> packed_ [panels, channels, panel], with zeros behind the last.
  void pack(const PixelGrid<Scalar>& grid) {
    double* to = packed_;
    const Scalar* from[kMostLanes];
    for (int64_t first = 0; first < grid.pixels(); first += panel_) {
      const int64_t count = std::min(panel_, grid.pixels() - first);
      for (int64_t i = 0; i < count; ++i) from[i] = grid.at(first + i);
      for (int64_t c = 0; c < grid.channels; ++c, to += panel_) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i][c * grid.strides.channel];
        std::fill(to + count, to + panel_, 0.0);
      }
    }
  }

  // Writes the products of the packed pixels of the panel at `first` with their own and all later
  // ones: to[(pixel - first) * pitch + other].
  void products(const PixelGrid<Scalar>& grid, int64_t first, double* to, int64_t pitch) const {
    const int64_t rows = std::min(panel_, grid.pixels() - first), lanes = tiles_.lanes;
    const double* panel = packed_ + first * grid.channels;
    for (int64_t i = 0; i < rows; ++i) std::fill(to + i * pitch + first, to + (i + 1) * pitch, 0.0);
    TapLoop loop{};
    loop.draws = loop.rows = loop.grad_channel = 1;
    loop.x_column = loop.grad_column = panel_;
    loop.adds = true;
    for (int64_t c = 0; c < grid.channels; c += kChunk) {
      loop.columns = std::min(kChunk, grid.channels - c);
      const double* own = panel + c * panel_;
      if (panel_ == lanes) {
        tiles_.one_vector(loop, own, own, to + first, pitch, rows);
      } else {
        tiles_.two_vectors(loop, own, own, to + first, pitch, std::min(rows, lanes));
        if (rows > lanes) {  // The first half of the panel has met them.
          tiles_.one_vector(loop, own + lanes, own + lanes, to + lanes * pitch + first + lanes,
                            pitch, rows - lanes);
        }
      }
      for (int64_t other = first + panel_; other < pitch; other += panel_) {
        const double* theirs = packed_ + other * grid.channels + c * panel_;
        (panel_ == lanes ? tiles_.one_vector : tiles_.two_vectors)(loop, theirs, own, to + other,
                                                                   pitch, rows);
      }
    }
  }

  static constexpr int64_t kMostLanes = 16;

  const GramSums<Scalar>& job_;
  const ConvGeometry& shape_;
  const TileSet<double>& tiles_;
  const int64_t positions_;
  const int64_t panel_;  // pixels that are multiplied together: one vector or two
  const int64_t pitch_;  // positions in whole panels
  double* patches_;      // [positions, pitch], <u_t, u_s>
  double* rows_;         // [panel, pitch], of the Gram matrix of grad
  double* pixels_;       // [pixels, pixels], of one residue's
  double* packed_;       // [panels, channels, panel]
};

// Writes the sums of the examples begin … end - 1: over pairs of positions of
// <u_t, u_s> <grad_t, grad_s>, and over positions of |u_t| |grad_t|, of |u_t| and of |grad_t|.
template <typename Scalar>
inline void gram_sums(const GramSums<Scalar>& job, int64_t begin, int64_t end,
                      const TileSet<double>& tiles = *tile_sets<double>()) {
  GramMatrices<Scalar> matrices(job, tiles);
  for (int64_t i = begin; i < end; ++i) matrices.add_up(i);
}

}  // namespace privimage::cpu
