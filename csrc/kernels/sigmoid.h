// The logistic function: in float32 by the GPU's own approximations, two instructions of its
// special unit where exp and division are thirty of the others.
#pragma once

#include <cmath>

#include "kernels/block.h"

namespace privimage::cuda {

// Off by at most 2^-21, and by (|x| + 4) 2^-23 of itself above 2^-126: ex2.approx and rcp.approx
// are off by 2^-22 and 2^-23 of themselves (PTX ISA, ex2 and rcp), and x log2 e is rounded. 0 where
// the exponential overflows, 1 where it underflows; a NaN stays one.
PRIVIMAGE_DEVICE float sigmoid(float x) {
#if defined(__CUDA_ARCH__)
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  return result;
#else
  return 1.0f / (1.0f + std::exp(-x));
#endif
}

PRIVIMAGE_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

}  // namespace privimage::cuda
