// The runs of values that the passes of a normalisation go by, and the loops over one of them.
//
// All runs of a line have the same channels in the same order, so that one loop does for both
// layouts: the coefficients of a run are laid out once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "shared/group_norm_silu.h"

namespace privimage::cpu {

// Values of a run, at least: enough to make a loop's start cheap.
constexpr int64_t kRun = 256;

// x between -87 and 87, by its bits. Of a comparison of floats the compiler would make cases of the
// whole loop, which are no vectors before AVX-512 and multiply by constants so small that it takes
// them long.
PRIVIMAGE_INLINE float limited(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const int32_t sign = bits & INT32_MIN;
  bits = sign | std::min<int32_t>(bits & INT32_MAX, 0x42ae0000);  // the bits of 87
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// e^x, to 2e-7 relative, as arithmetic that compilers turn into vector instructions; beyond 87, and
// of a NaN, that of 87.
PRIVIMAGE_INLINE float exponential(float x) {
  x = limited(x);
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float shifted = x * 1.44269504f + rounder;
  const float whole = shifted - rounder;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  // The series of e^r, in pairs: half as many operations have to wait for one another.
  const float square = r * r;
  float sum = 1.0f / 720 + r * (1.0f / 5040);
  sum = sum * square + (1.0f / 24 + r * (1.0f / 120));
  sum = sum * square + (0.5f + r * (1.0f / 6));
  sum = sum * square + (1.0f + r);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // 2^whole
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}
PRIVIMAGE_INLINE double exponential(double x) { return std::exp(x); }

template <typename Scalar>
PRIVIMAGE_INLINE Scalar sigmoid(Scalar x) {
  return Scalar(1) / (Scalar(1) + exponential(-x));
}

// The loops over a run, where the time goes. Their arrays never overlap but where named the same.

template <typename Scalar>
PRIVIMAGE_INLINE void add(int64_t count, const Scalar* __restrict__ x, Scalar* __restrict__ sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

template <typename Scalar>
PRIVIMAGE_INLINE void add_squares(int64_t count, const Scalar* __restrict__ x,
                                  const Scalar* __restrict__ centre, Scalar* __restrict__ sums) {
  for (int64_t i = 0; i < count; ++i) {
    const Scalar difference = x[i] - centre[i];
    sums[i] += difference * difference;
  }
}

template <bool kSilu, typename Scalar>
PRIVIMAGE_INLINE void normalise(int64_t count, const Scalar* __restrict__ x,
                                const Scalar* __restrict__ a, const Scalar* __restrict__ b,
                                Scalar* __restrict__ y) {
  for (int64_t i = 0; i < count; ++i) {
    const Scalar value = a[i] * x[i] + b[i];
    y[i] = kSilu ? value * sigmoid(value) : value;
  }
}

// to = the gradient of a x + b; adds it to sums, and times x - centre to products.
template <bool kSilu, typename Scalar>
PRIVIMAGE_INLINE void add_slopes(int64_t count, const Scalar* __restrict__ x,
                                 const Scalar* __restrict__ grad, const Scalar* __restrict__ a,
                                 const Scalar* __restrict__ b, const Scalar* __restrict__ centre,
                                 Scalar* __restrict__ to, Scalar* __restrict__ sums,
                                 Scalar* __restrict__ products) {
  for (int64_t i = 0; i < count; ++i) {
    Scalar slope = grad[i];
    if (kSilu) {
      const Scalar value = a[i] * x[i] + b[i];
      const Scalar s = sigmoid(value);
      slope *= s * (Scalar(1) + value * (Scalar(1) - s));
    }
    to[i] = slope;
    sums[i] += slope;
    products[i] += slope * (x[i] - centre[i]);
  }
}

template <typename Scalar>
PRIVIMAGE_INLINE void combine(int64_t count, const Scalar* __restrict__ x,
                              const Scalar* __restrict__ a, const Scalar* __restrict__ b,
                              const Scalar* __restrict__ c, Scalar* __restrict__ to) {
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] * to[i] + b[i] * x[i] + c[i];
}

// The memory of one row's passes: a value a channel, and a value a place in a run.
template <typename Scalar>
struct GroupNormScratch {
  int64_t run;                      // values of a run
  Scalar *sums, *products;          // [channels]
  Scalar *tilts, *shifts;           // [groups]
  Scalar *first, *second, *third;   // [run], coefficients
  Scalar *run_sums, *run_products;  // [run]

  explicit GroupNormScratch(const GroupNormShape& shape) {
    const int64_t repeats = std::max<int64_t>(kRun / std::max<int64_t>(shape.channels, 1), 1);
    run =
        shape.channels_last ? repeats * shape.channels : std::clamp<int64_t>(shape.pixels, 1, kRun);
    static thread_local Scratch<Scalar> scratch;
    Scalar* next = scratch.at_least(2 * shape.channels + 2 * shape.groups + 5 * run);
    for (Scalar** array : {&first, &second, &third, &run_sums, &run_products}) {
      *array = next;
      next += run;
    }
    sums = next;
    products = sums + shape.channels;
    tilts = products + shape.channels;
    shifts = tilts + shape.groups;
  }
};

// Calls body(begin, count) for the runs of one channel (channels first) or of all (channels last).
template <typename Body>
PRIVIMAGE_INLINE void for_each_run(const GroupNormShape& shape, int64_t run, int64_t channel,
                                   Body body) {
  const int64_t size = shape.channels_last ? shape.channels * shape.pixels : shape.pixels;
  const int64_t start = shape.channels_last ? 0 : channel * shape.pixels;
  for (int64_t begin = 0; begin < size; begin += run) {
    body(start + begin, std::min(run, size - begin));
  }
}

// The channels whose runs `for_each_run` gives one after another.
PRIVIMAGE_INLINE int64_t lines(const GroupNormShape& shape) {
  return shape.channels_last ? 1 : shape.channels;
}

PRIVIMAGE_INLINE int64_t width_of(const GroupNormShape& shape) {
  return shape.channels / shape.groups;
}

// to[place] = value(channel, its group) for all places of a run; `channel` is that of a
// channels-first line.
template <typename Scalar, typename Value>
PRIVIMAGE_INLINE void lay_out(const GroupNormShape& shape, int64_t run, int64_t channel, Scalar* to,
                              Value value) {
  const int64_t width = width_of(shape);
  if (!shape.channels_last) {
    std::fill_n(to, run, value(channel, channel / width));
    return;
  }
  for (int64_t g = 0; g < shape.groups; ++g) {
    for (int64_t c = g * width; c < (g + 1) * width; ++c) to[c] = value(c, g);
  }
  for (int64_t i = shape.channels; i < run; ++i) to[i] = to[i - shape.channels];
}

// The inverse: adds the places of a run up by channel.
template <typename Scalar>
PRIVIMAGE_INLINE void gather(const GroupNormShape& shape, int64_t run, int64_t channel,
                             const Scalar* from, Scalar* sums) {
  if (!shape.channels_last) {
    Scalar sum = 0;
    for (int64_t i = 0; i < run; ++i) sum += from[i];
    sums[channel] = sum;
    return;
  }
  for (int64_t c = 0; c < shape.channels; ++c) sums[c] = from[c];
  for (int64_t i = shape.channels; i < run; i += shape.channels) {
    for (int64_t c = 0; c < shape.channels; ++c) sums[c] += from[i + c];
  }
}

}  // namespace privimage::cpu
