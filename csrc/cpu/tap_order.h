// A tile's sums in the order of the gradient's weights: an input's taps side by side.
#pragma once

#include <cstdint>

namespace privimage::cpu {

// from [taps, pitch] -> to [inputs, taps]; kTaps unrolls the loop, 0 does not. Not inlined, for the
// sake of its registers.
template <int kTaps, typename Scalar>
__attribute__((noinline)) void turn(const Scalar* __restrict__ from, int64_t inputs, int64_t taps,
                                    int64_t pitch, Scalar* __restrict__ to) {
  if (kTaps > 0) taps = kTaps;
  for (int64_t c = 0; c < inputs; ++c) {
    for (int64_t t = 0; t < taps; ++t) to[c * taps + t] = from[t * pitch + c];
  }
}

// sums [taps, pitch] -> [inputs, taps], turned around into `row` in the first-level cache, since
// single values going to memory fill the store buffer.
template <typename Scalar>
const Scalar* in_order(const Scalar* sums, int64_t inputs, int64_t taps, int64_t pitch,
                       Scalar* row) {
  if (taps == 1) return sums;
  (taps == 9 ? turn<9, Scalar> : turn<0, Scalar>)(sums, inputs, taps, pitch, row);
  return row;
}

}  // namespace privimage::cpu
