// How an example is cut for the caches: into bands of pixels for the first level, and into chunks
// of bands for the second, where all of it is too large for that.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared/conv_geometry.h"

namespace privimage::cpu {

// Pixels of a band: x stays in the first-level cache, and adding registers to the sums costs little
// beside so many products. 64 to 128 are equally fast.
constexpr int64_t kBandPixels = 96;

// Bytes of an example's tensors that stay in the second-level cache while all its output channels
// are worked on, beside as many bytes of their sums.
constexpr int64_t kCacheBytes = 3 << 18;

// Part of an example: `rows` rows of the output from `row` on, of `draws` draws from `draw` on.
struct Part {
  int64_t draw, draws, row, rows;
};

// Calls body(part) for parts of `whole` as large as `size` or smaller, in order.
template <typename Body>
inline void for_each(const Part& size, const Part& whole, Body body) {
  const int64_t last_draw = whole.draw + whole.draws, last_row = whole.row + whole.rows;
  for (int64_t draw = whole.draw; draw < last_draw; draw += size.draws) {
    for (int64_t row = whole.row; row < last_row; row += size.rows) {
      body(Part{draw, std::min(size.draws, last_draw - draw), row,
                std::min(size.rows, last_row - row)});
    }
  }
}

// How large the parts are.
struct Cut {
  Part band, chunk;
  bool fits;  // whether an example is a single chunk
};

// `pixel`: bytes of both tensors for a pixel of the output; `cache_bytes`: as kCacheBytes.
inline Cut cut_for_caches(const ConvGeometry& shape, int64_t pixel, int64_t cache_bytes) {
  const int64_t width = std::max<int64_t>(shape.width.outputs, 1);
  const int64_t height = std::max<int64_t>(shape.height.outputs, 1);
  const auto of_pixels = [&](int64_t pixels) {
    const int64_t rows = std::clamp<int64_t>(pixels / width, 1, height);
    return Part{0, std::max<int64_t>(pixels / (width * height), 1), 0, rows};
  };
  const Part band = of_pixels(kBandPixels);
  Part chunk = of_pixels(std::max(cache_bytes / pixel, kBandPixels));
  chunk.draws = chunk.draws / band.draws * band.draws;
  chunk.rows = chunk.rows < height ? chunk.rows / band.rows * band.rows : height;
  return {band, chunk, chunk.rows == height && chunk.draws >= shape.draws};
}

}  // namespace privimage::cpu
