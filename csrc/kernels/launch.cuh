// Starts a kernel in the shape that kernels/launch.h describes.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/launch.h"

namespace privimage::cuda {

// Of a block, on the current device.
inline int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess) {
    return kMostSharedBytes;  // The launch will say what is wrong.
  }
  return std::min<int64_t>(bytes, kMostSharedBytes);
}

// Queues kernel(job) on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none, or
// kTooLarge.
template <typename Job>
int launch(void (*kernel)(Job), const LaunchShape& shape, const Job& job, void* stream) {
  if (shape.empty()) return static_cast<int>(cudaSuccess);
  if (!shape.possible(most_shared_bytes())) return kTooLarge;
  constexpr int64_t kWithoutAsking = 48 * 1024;
  const size_t bytes = static_cast<size_t>(shape.shared_bytes);
  if (shape.shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  const dim3 blocks(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
  kernel<<<blocks, static_cast<unsigned>(shape.threads), bytes,
           static_cast<cudaStream_t>(stream)>>>(job);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace privimage::cuda
