// The inner loops of the per-example weight gradient and of Gram matrices for one instruction set.
//
// No include guard: example_weight_grad_isa.h includes this once for each instruction set, with
//   PRIVIMAGE_ISA        the namespace,
//   PRIVIMAGE_TARGET     the function attribute that allows the instructions,
//   PRIVIMAGE_BYTES      bytes of a vector,
//   PRIVIMAGE_FMA(a, b, c, scalar)  a * b + c on vectors of `scalar`,
//   PRIVIMAGE_TILE_ROWS  output channels of a tile, such that a tile fits into the registers,
//   PRIVIMAGE_STREAM(to, values)  writes a vector of integers past the caches,
//   PRIVIMAGE_WIDEN(few)  floats as a vector of doubles,
//   PRIVIMAGE_GRID_INTEGER  what doubles are converted to fastest, 32 bits or 64.
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
// over a band of pixels in registers, and written or added to sums[row * pitch + channel]. kClose
// says that output channels lie side by side.
template <typename Scalar, int kVectors, int kRows, bool kClose>
PRIVIMAGE_TARGET static inline void tile(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                         Scalar* sums, int64_t pitch) {
  using Vector = typename Lanes<Scalar>::Vector;
  using Unaligned = typename Lanes<Scalar>::Unaligned;
  const int64_t channel = kClose ? 1 : loop.grad_channel;
  const int64_t x_next = loop.x_row - loop.columns * loop.x_column;
  const int64_t grad_next = loop.grad_row - loop.columns * loop.grad_column;
  Vector total[kRows][kVectors] = {};
  for (int64_t draw = 0; draw < loop.draws; ++draw) {
    const Scalar* pixel = x + draw * loop.x_draw;
    const Scalar* slope = grad + draw * loop.grad_draw;
    for (int64_t row = loop.rows; row > 0; --row) {
      for (int64_t column = loop.columns; column > 0; --column) {
        Vector values[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          values[v] = reinterpret_cast<const Unaligned*>(pixel)[v];
        }
        for (int r = 0; r < kRows; ++r) {
          const Vector factor = slope[r * channel] - Vector{};
          for (int v = 0; v < kVectors; ++v) {
            total[r][v] = multiply_add(values[v], factor, total[r][v]);
          }
        }
        pixel += loop.x_column;
        slope += loop.grad_column;
      }
      pixel += x_next;
      slope += grad_next;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Unaligned& sum = reinterpret_cast<Unaligned*>(sums + r * pitch)[v];
      sum = loop.adds ? sum + total[r][v] : total[r][v];
    }
  }
}

// `count` output channels, as many at a time as a tile holds.
template <typename Scalar, int kVectors, bool kClose, int kRows = PRIVIMAGE_TILE_ROWS>
PRIVIMAGE_TARGET static void channels(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                      Scalar* sums, int64_t pitch, int64_t count) {
  for (; count >= kRows; count -= kRows) {
    tile<Scalar, kVectors, kRows, kClose>(loop, x, grad, sums, pitch);
    grad += kRows * loop.grad_channel;
    sums += kRows * pitch;
  }
  if constexpr (kRows > 1) {
    if (count > 0) channels<Scalar, kVectors, kClose, kRows / 2>(loop, x, grad, sums, pitch, count);
  }
}

template <typename Scalar, int kVectors>
PRIVIMAGE_TARGET static void tiles(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                   Scalar* sums, int64_t pitch, int64_t count) {
  if (loop.grad_channel == 1) {
    channels<Scalar, kVectors, true>(loop, x, grad, sums, pitch, count);
  } else {
    channels<Scalar, kVectors, false>(loop, x, grad, sums, pitch, count);
  }
}

template <typename Scalar>
PRIVIMAGE_TARGET static void eight_vectors(const TapLoop& loop, const Scalar* x, const Scalar* grad,
                                           Scalar* sums, int64_t pitch, int64_t) {
  tile<Scalar, 8, 1, true>(loop, x, grad, sums, pitch);
}

// As many values as a vector of doubles has.
PRIVIMAGE_TARGET static inline Lanes<double>::Vector as_doubles(const double* from) {
  return *reinterpret_cast<const Lanes<double>::Unaligned*>(from);
}
PRIVIMAGE_TARGET static inline Lanes<double>::Vector as_doubles(const float* from) {
  constexpr int64_t kBytes = Lanes<double>::count * sizeof(float);
  typedef float Few __attribute__((vector_size(kBytes), aligned(sizeof(float)), may_alias));
  return PRIVIMAGE_WIDEN(*reinterpret_cast<const Few*>(from));
}

// Floats have exact squares, so that fusing changes no bit.
PRIVIMAGE_TARGET static inline auto add_square(const float* value, Lanes<double>::Vector sum) {
  const auto wide = as_doubles(value);
  return multiply_add(wide, wide, sum);
}
PRIVIMAGE_TARGET static inline auto add_square(const double* value, Lanes<double>::Vector sum) {
  const auto wide = as_doubles(value);
  return wide * wide + sum;
}

template <typename Scalar>
PRIVIMAGE_TARGET static double squared_norm(const Scalar* values, int64_t count) {
  constexpr int64_t kLanes = Lanes<double>::count, kVectors = kSquareLanes / kLanes;
  Lanes<double>::Vector sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kSquareLanes <= count; i += kSquareLanes) {
    for (int64_t v = 0; v < kVectors; ++v) sums[v] = add_square(values + i + v * kLanes, sums[v]);
  }
  double lanes[kSquareLanes];
  for (int64_t v = 0; v < kVectors; ++v) {
    *reinterpret_cast<Lanes<double>::Unaligned*>(lanes + v * kLanes) = sums[v];
  }
  for (int64_t lane = 0; i + lane < count; ++lane) {
    const double value = values[i + lane];
    lanes[lane] += value * value;
  }
  for (int64_t half = kSquareLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Scaled values in grid steps (`grid_coordinate`), as many as a vector of doubles has.
PRIVIMAGE_TARGET static inline auto grid_steps(const float* values, double scale) {
  constexpr int64_t kLanes = Lanes<double>::count;
  typedef float Few
      __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef int32_t Steps __attribute__((vector_size(kLanes * sizeof(int32_t))));
  const Few scaled = *reinterpret_cast<const Few*>(values) * static_cast<float>(scale);
  return __builtin_convertvector(__builtin_convertvector(scaled, Steps), Lanes<int64_t>::Vector);
}
PRIVIMAGE_TARGET static inline auto grid_steps(const double* values, double scale) {
  typedef PRIVIMAGE_GRID_INTEGER Steps
      __attribute__((vector_size(Lanes<double>::count * sizeof(PRIVIMAGE_GRID_INTEGER))));
  const auto steps = __builtin_convertvector(as_doubles(values) * scale, Steps);
  return __builtin_convertvector(steps, Lanes<int64_t>::Vector);
}

// Adds scaled values.
template <typename Scalar>
PRIVIMAGE_TARGET static void add_scaled(const Scalar* values, int64_t count, double scale,
                                        int64_t* sums) {
  constexpr int64_t kLanes = Lanes<double>::count;
  using Sums = typename Lanes<int64_t>::Unaligned;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    *reinterpret_cast<Sums*>(sums + i) += grid_steps(values + i, scale);
  }
  for (; i < count; ++i) sums[i] += grid_coordinate(values[i], scale);
}

// Of values in the columns of a few rows; an example of scale 0 is passed over.
template <typename Scalar>
PRIVIMAGE_TARGET static void add_rows(const ScaledRows<Scalar>& rows, int64_t count, SumsAre are,
                                      int64_t* sums) {
  constexpr int64_t kLanes = Lanes<double>::count, kVectors = kHeld / kLanes;
  using Sums = typename Lanes<int64_t>::Unaligned;
  int64_t i = 0;
  for (; i + kHeld <= count; i += kHeld) {
    Sums* to = reinterpret_cast<Sums*>(sums + i);
    typename Lanes<int64_t>::Vector held[kVectors] = {};
    if (are == SumsAre::kAdded) {
      for (int64_t v = 0; v < kVectors; ++v) held[v] = to[v];
    }
    for (int64_t example = 0; example < rows.examples; ++example) {
      const double scale = rows.scales[example];
      if (scale == 0.0) continue;
      const Scalar* row = rows.values + example * rows.stride + i;
      for (int64_t v = 0; v < kVectors; ++v) held[v] += grid_steps(row + v * kLanes, scale);
    }
    if (are == SumsAre::kStreamed && reinterpret_cast<uintptr_t>(to) % PRIVIMAGE_BYTES == 0) {
      for (int64_t v = 0; v < kVectors; ++v) {
        PRIVIMAGE_STREAM(reinterpret_cast<Lanes<int64_t>::Vector*>(to + v), held[v]);
      }
    } else {
      for (int64_t v = 0; v < kVectors; ++v) to[v] = held[v];
    }
  }
  for (; i < count; ++i) {
    int64_t sum = are == SumsAre::kAdded ? sums[i] : 0;
    for (int64_t example = 0; example < rows.examples; ++example) {
      const double scale = rows.scales[example];
      if (scale != 0.0) sum += grid_coordinate(rows.values[example * rows.stride + i], scale);
    }
    sums[i] = sum;
  }
}

// The sums of outer products, steps[output * pitch + input], of kVectors vectors of inputs.
template <typename Scalar, int kVectors>
PRIVIMAGE_TARGET static inline void outer_steps(const OuterProducts<Scalar>& products,
                                                int64_t pitch, int32_t* steps) {
  constexpr int64_t kLanes = Lanes<Scalar>::count;
  using Unaligned = typename Lanes<Scalar>::Unaligned;
  typedef int32_t Steps __attribute__((vector_size(kLanes * sizeof(int32_t)), may_alias));
  Steps total[kOuterRows][kVectors] = {};
  const Scalar *x = products.x, *grad = products.grad;
  for (int64_t i = 0; i < products.examples; ++i, x += pitch, grad += kOuterRows) {
    const Scalar scale = products.scales[i];
    for (int v = 0; v < kVectors; ++v) {
      const auto values = reinterpret_cast<const Unaligned*>(x)[v];
      for (int r = 0; r < kOuterRows; ++r) {
        total[r][v] += __builtin_convertvector(values * grad[r] * scale, Steps);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kOuterRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      memcpy(steps + r * pitch + v * kLanes, &total[r][v], sizeof(Steps));
    }
  }
}

// As many vectors as registers hold for kOuterRows outputs.
constexpr int kOuterVectors = PRIVIMAGE_TILE_ROWS / 2;

template <typename Scalar>
PRIVIMAGE_TARGET static void add_outer(const OuterProducts<Scalar>& products, int64_t outputs,
                                       int64_t inputs, bool adds, int64_t* sums, int64_t pitch) {
  constexpr int64_t kLanes = Lanes<Scalar>::count, kPanel = kOuterVectors * kLanes;
  int32_t steps[kOuterRows * kPanel];
  if (inputs > kPanel - kLanes) {
    outer_steps<Scalar, kOuterVectors>(products, kPanel, steps);
  } else {
    OuterProducts<Scalar> vector = products;
    for (int64_t i = 0; i < inputs; i += kLanes) {
      vector.x = products.x + i;
      outer_steps<Scalar, 1>(vector, kPanel, steps + i);
    }
  }
  for (int64_t r = 0; r < outputs; ++r) {
    for (int64_t i = 0; i < inputs; ++i) {
      const int64_t before = adds ? sums[r * pitch + i] : 0;
      sums[r * pitch + i] = before + steps[r * kPanel + i];
    }
  }
}

template <typename Scalar>
PRIVIMAGE_TARGET static Scalar largest(const Scalar* values, int64_t count, int64_t stride) {
  Scalar most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Scalar value = values[i * stride], size = value < 0 ? -value : value;
    most = size > most ? size : most;
  }
  return most;
}

PRIVIMAGE_TARGET static inline void stream(const int64_t* values, int64_t count, int64_t* to) {
  constexpr int64_t kLanes = Lanes<int64_t>::count;
  using Vector = Lanes<int64_t>::Vector;
  int64_t i = 0;
  for (; i < count && reinterpret_cast<uintptr_t>(to + i) % PRIVIMAGE_BYTES != 0; ++i) {
    to[i] = values[i];
  }
  for (; i + kLanes <= count; i += kLanes) {
    const Vector some = *reinterpret_cast<const Lanes<int64_t>::Unaligned*>(values + i);
    PRIVIMAGE_STREAM(reinterpret_cast<Vector*>(to + i), some);
  }
  for (; i < count; ++i) to[i] = values[i];
}

template <typename Scalar>
inline TileSet<Scalar> tile_set() {
  return {tiles<Scalar, 1>,
          tiles<Scalar, 2>,
          eight_vectors<Scalar>,
          Lanes<Scalar>::count,
          squared_norm<Scalar>,
          add_scaled<Scalar>,
          add_rows<Scalar>,
          add_outer<Scalar>,
          kOuterVectors * Lanes<Scalar>::count,
          largest<Scalar>,
          stream};
}

}  // namespace privimage::cpu::PRIVIMAGE_ISA

#undef PRIVIMAGE_ISA
#undef PRIVIMAGE_TARGET
#undef PRIVIMAGE_BYTES
#undef PRIVIMAGE_FMA
#undef PRIVIMAGE_TILE_ROWS
#undef PRIVIMAGE_STREAM
#undef PRIVIMAGE_WIDEN
#undef PRIVIMAGE_GRID_INTEGER
