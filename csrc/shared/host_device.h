// One source for the CPU and the GPU: the functions in this folder are compiled for both.
#pragma once

// On the CPU they are always inlined: only then are they compiled for the instruction set of the
// loop that calls them. Loops over arrays of registers must be unrolled.
#if defined(__CUDACC__)
#define PRIVIMAGE_HOST_DEVICE __host__ __device__ inline
#define PRIVIMAGE_UNROLL _Pragma("unroll")
#else
#define PRIVIMAGE_HOST_DEVICE __attribute__((always_inline)) inline
#define PRIVIMAGE_UNROLL _Pragma("GCC unroll 16")
#endif
