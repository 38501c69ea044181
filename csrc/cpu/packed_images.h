// Images somewhere in memory, and copies of them in which some channels lie side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "shared/example_weight_grad.h"

namespace privimage::cpu {

// The images of an example, [draws, rows, columns] pixels of some channels.
template <typename Scalar>
struct Images {
  const Scalar* values;
  ImageStrides strides;
  int64_t draws, rows, columns;

  const Scalar* at(int64_t draw, int64_t row, int64_t column) const {
    return values + draw * strides.row + row * strides.height + column * strides.width;
  }
};

// Pixels side by side, `width` values each.
template <typename Scalar>
inline Images<Scalar> packed(const Scalar* values, const Images<Scalar>& like, int64_t width) {
  const int64_t row = like.columns * width;
  return {values, {like.rows * row, 1, row, width}, like.draws, like.rows, like.columns};
}

// Bytes that are copied in one go, by a vector or two.
constexpr int64_t kCopied = 32;

// Copies `bytes`, a multiple of kCopied, of each of `count` pixels that are `apart` bytes apart,
// and asks for what lies behind, which is copied next.
PRIVIMAGE_CLONES void copy_pixels(const char* from, int64_t apart, int64_t count, int64_t bytes,
                                  char* to) {
  for (int64_t i = 0; i < count; ++i, from += apart, to += bytes) {
    for (int64_t at = 0; at < bytes; at += kCopied) std::memcpy(to + at, from + at, kCopied);
    for (int64_t at = bytes; at < 2 * bytes; at += 64) __builtin_prefetch(from + at);
  }
}

// Copies `count` channels from `channel` on, followed by zeros up to `width`. Returns the end.
template <typename Scalar>
inline Scalar* pack(const Images<Scalar>& from, int64_t channel, int64_t count, int64_t width,
                    Scalar* to) {
  const int64_t apart = from.strides.channel;
  const int64_t size = sizeof(Scalar);
  const bool is_whole = apart == 1 && count == width && width * size % kCopied == 0;
  for (int64_t draw = 0; draw < from.draws; ++draw) {
    for (int64_t row = 0; row < from.rows; ++row) {
      const Scalar* pixel = from.at(draw, row, 0) + channel * apart;
      if (is_whole) {
        copy_pixels(reinterpret_cast<const char*>(pixel), from.strides.width * size, from.columns,
                    width * size, reinterpret_cast<char*>(to));
        to += from.columns * width;
        continue;
      }
      for (int64_t column = 0; column < from.columns; ++column, to += width) {
        for (int64_t c = 0; c < count; ++c) to[c] = pixel[c * apart];
        std::fill(to + count, to + width, Scalar(0));
        pixel += from.strides.width;
      }
    }
  }
  return to;
}

}  // namespace privimage::cpu
