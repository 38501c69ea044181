// The inner loops of the per-example weight gradient and of Gram matrices for every instruction
// set, and the choice.
#pragma once

#include <cstdint>

#include "shared/grid.h"

// Fused multiply-adds are asked for by name, because contraction is off; hence one copy of the
// loops an instruction set, instead of the clones of dispatch.h.
#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define PRIVIMAGE_X86
#endif

namespace privimage::cpu {

// Which pixels of x meet which of grad through one tap; distances in values.
struct TapLoop {
  int64_t draws, rows, columns;
  int64_t x_draw, x_row, x_column;
  int64_t grad_draw, grad_row, grad_column, grad_channel;
  bool adds;  // to the sums; else they are written
};

// One tap's products, summed into sums[row * pitch + channel], for `count` output channels and the
// input channels of one or two vectors.
template <typename Scalar>
using Tiles = void (*)(const TapLoop&, const Scalar* x, const Scalar* grad, Scalar* sums,
                       int64_t pitch, int64_t count);

// The sum of squares in float64, in `kSquareLanes` lanes that are added pairwise at the end: a
// fixed order that fills the widest vectors, so the result depends on neither machine nor threads.
template <typename Scalar>
using SquaredNorm = double (*)(const Scalar* values, int64_t count);
constexpr int64_t kSquareLanes = 16;

// Adds values, scaled and rounded to the grid, to `sums`.
template <typename Scalar>
using AddScaled = void (*)(const Scalar* values, int64_t count, double scale, int64_t* sums);

// Values of an example in each row, `stride` apart.
template <typename Scalar>
struct ScaledRows {
  const Scalar* values;
  int64_t stride;
  const double* scales;  // [examples]
  int64_t examples;
};

// What becomes of the sums: added to what is there, written over it, or that past the caches.
enum class SumsAre { kAdded, kWritten, kStreamed };

// As `AddScaled`, in `count` columns of all rows, of which kHeld sums are held in registers while
// the rows pass by.
template <typename Scalar>
using AddRows = void (*)(const ScaledRows<Scalar>&, int64_t count, SumsAre are, int64_t* sums);
constexpr int64_t kHeld = 32;

// Outer products of a few examples: a panel of inputs, zeros behind the last, with kOuterRows
// outputs.
constexpr int64_t kOuterRows = 4;
template <typename Scalar>
struct OuterProducts {
  const Scalar* x;       // [examples, TileSet::outer_inputs]
  const Scalar* grad;    // [examples, kOuterRows]
  const Scalar* scales;  // [examples]
  int64_t examples;
};

// Adds them, scaled and rounded to the grid, to sums[output * pitch + input], or writes them. Over
// the examples no coordinate comes to 2^31.
template <typename Scalar>
using AddOuter = void (*)(const OuterProducts<Scalar>&, int64_t outputs, int64_t inputs, bool adds,
                          int64_t* sums, int64_t pitch);

// The largest magnitude of finite values, `stride` apart.
template <typename Scalar>
using Largest = Scalar (*)(const Scalar* values, int64_t count, int64_t stride);

// Writes integers past the caches, which need not read what they held first. Each thread has to
// call `finish_streams` before others look.
using Stream = void (*)(const int64_t* values, int64_t count, int64_t* to);

template <typename Scalar>
struct TileSet {
  Tiles<Scalar> one_vector;
  Tiles<Scalar> two_vectors;
  Tiles<Scalar> eight_vectors;  // of one output channel
  int64_t lanes;                // values in a vector
  SquaredNorm<Scalar> squared_norm;
  AddScaled<Scalar> add_scaled;
  AddRows<Scalar> add_rows;
  AddOuter<Scalar> add_outer;
  int64_t outer_inputs;  // of a panel
  Largest<Scalar> largest;
  Stream stream;
};

}  // namespace privimage::cpu

#ifdef PRIVIMAGE_X86
#define PRIVIMAGE_ISA avx512
#define PRIVIMAGE_TARGET __attribute__((target("avx512f,avx512dq")))
#define PRIVIMAGE_BYTES 64
#define PRIVIMAGE_FMA(a, b, c, scalar) _mm512_fmadd_##scalar(a, b, c)
#define PRIVIMAGE_TILE_ROWS 8
#define PRIVIMAGE_STREAM(to, values) _mm512_stream_si512((__m512i*)(to), (__m512i)(values))
#define PRIVIMAGE_WIDEN(few) _mm512_maskz_cvtps_pd(0xff, few)
#define PRIVIMAGE_GRID_INTEGER int64_t
#include "cpu/example_weight_grad_tiles.h"

#define PRIVIMAGE_ISA avx2
#define PRIVIMAGE_TARGET __attribute__((target("avx2,fma")))
#define PRIVIMAGE_BYTES 32
#define PRIVIMAGE_FMA(a, b, c, scalar) _mm256_fmadd_##scalar(a, b, c)
#define PRIVIMAGE_TILE_ROWS 4
#define PRIVIMAGE_STREAM(to, values) _mm256_stream_si256((__m256i*)(to), (__m256i)(values))
#define PRIVIMAGE_WIDEN(few) __builtin_convertvector(few, Lanes<double>::Vector)
#define PRIVIMAGE_GRID_INTEGER int32_t
#include "cpu/example_weight_grad_tiles.h"
#endif

#define PRIVIMAGE_ISA baseline
#define PRIVIMAGE_TARGET
#define PRIVIMAGE_BYTES 16
#define PRIVIMAGE_FMA(a, b, c, scalar) ((a) * (b) + (c))
#define PRIVIMAGE_TILE_ROWS 4
#define PRIVIMAGE_STREAM(to, values) (*(to) = (values))
#define PRIVIMAGE_WIDEN(few) __builtin_convertvector(few, Lanes<double>::Vector)
#define PRIVIMAGE_GRID_INTEGER int32_t
#include "cpu/example_weight_grad_tiles.h"

namespace privimage::cpu {

// Makes what this thread streamed visible to others.
inline void finish_streams() {
#ifdef PRIVIMAGE_X86
  _mm_sfence();
#endif
}

// What this machine can run, the best one first; null ends the list.
template <typename Scalar>
inline const TileSet<Scalar>* tile_sets() {
  static const auto sets = [] {
    struct {
      TileSet<Scalar> list[4];
    } found{};
    TileSet<Scalar>* next = found.list;
#ifdef PRIVIMAGE_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
      *next++ = avx512::tile_set<Scalar>();
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      *next++ = avx2::tile_set<Scalar>();
    }
#endif
    *next = baseline::tile_set<Scalar>();
    return found;
  }();
  return sets.list;
}

}  // namespace privimage::cpu
