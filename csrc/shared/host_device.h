// Marks what compiles for the host and, under nvcc, for the device as well.
#pragma once

#if defined(__CUDACC__)
#define PRIVIMAGE_HOST_DEVICE __host__ __device__ inline
#else
#define PRIVIMAGE_HOST_DEVICE inline
#endif
