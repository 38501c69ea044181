// The inner loops of the per-example weight gradient and of Gram matrices for one instruction set.
//
// No include guard: example_weight_grad_isa.h includes this once for each instruction set, with
//   PRIVIMAGE_ISA        the namespace,
//   PRIVIMAGE_TARGET     the function attribute that allows the instructions,
//   PRIVIMAGE_BYTES      bytes of a vector,
//   PRIVIMAGE_FMA(a, b, c, scalar)  a * b + c on vectors of `scalar`,
//   PRIVIMAGE_TILE_ROWS  output channels of a tile, such that a tile fits into the registers.
namespace privimage::cpu::PRIVIMAGE_ISA {

template <typename Scalar>
struct Lanes {
  static constexpr int64_t count = PRIVIMAGE_BYTES / sizeof(Scalar);
  typedef Scalar Vector __attribute__((vector_size(PRIVIMAGE_BYTES)));
  // The same vector anywhere in memory.
  typedef Scalar Unaligned
      __attribute__((vector_size(PRIVIMAGE_BYTES), aligned(sizeof(Scalar)), may_alias));
};

PRIVIMAGE_TARGET static inline auto multiply_add(Lanes<float>::Vector a, Lanes<float>::Vector b,
                                                 Lanes<float>::Vector c) {
  return PRIVIMAGE_FMA(a, b, c, ps);
}
PRIVIMAGE_TARGET static inline auto multiply_add(Lanes<double>::Vector a, Lanes<double>::Vector b,
                                                 Lanes<double>::Vector c) {
  return PRIVIMAGE_FMA(a, b, c, pd);
}

// One tap's products of `kRows` output channels with `kVectors` vectors of input channels, summed
// over a band of pixels in registers and added to sums[row * pitch + channel].
template <typename Scalar, int kVectors, int kRows>
PRIVIMAGE_TARGET static inline void tile(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                         Scalar* sums, int64_t pitch) {
  using Vector = typename Lanes<Scalar>::Vector;
  using Unaligned = typename Lanes<Scalar>::Unaligned;
  Vector total[kRows][kVectors] = {};
  for (int64_t draw = 0; draw < loop.draws; ++draw) {
    for (int64_t row = 0; row < loop.rows; ++row) {
      const Scalar* pixel = x + draw * loop.x_draw + row * loop.x_row;
      const Scalar* slope = grad + draw * loop.grad_draw + row * loop.grad_row;
      for (int64_t column = 0; column < loop.columns; ++column) {
        Vector values[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          values[v] = reinterpret_cast<const Unaligned*>(pixel)[v];
        }
        for (int r = 0; r < kRows; ++r) {
          const Vector factor = slope[r * loop.grad_channel] - Vector{};
          for (int v = 0; v < kVectors; ++v) {
            total[r][v] = multiply_add(values[v], factor, total[r][v]);
          }
        }
        pixel += loop.x_column;
        slope += loop.grad_column;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      reinterpret_cast<Unaligned*>(sums + r * pitch)[v] += total[r][v];
    }
  }
}

// `count` output channels, as many at a time as a tile holds.
template <typename Scalar, int kVectors, int kRows = PRIVIMAGE_TILE_ROWS>
PRIVIMAGE_TARGET static void tiles(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                   Scalar* sums, int64_t pitch, int64_t count) {
  for (; count >= kRows; count -= kRows) {
    tile<Scalar, kVectors, kRows>(loop, x, grad, sums, pitch);
    grad += kRows * loop.grad_channel;
    sums += kRows * pitch;
  }
  if constexpr (kRows > 1) {
    if (count > 0) tiles<Scalar, kVectors, kRows / 2>(loop, x, grad, sums, pitch, count);
  }
}

template <typename Scalar>
inline TileSet<Scalar> tile_set() {
  return {tiles<Scalar, 1>, tiles<Scalar, 2>, Lanes<Scalar>::count};
}

}  // namespace privimage::cpu::PRIVIMAGE_ISA

#undef PRIVIMAGE_ISA
#undef PRIVIMAGE_TARGET
#undef PRIVIMAGE_BYTES
#undef PRIVIMAGE_FMA
#undef PRIVIMAGE_TILE_ROWS
