// Starts a kernel in the shape that kernels/launch.h describes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/launch.h"

namespace privimage::cuda {

// Queues kernel(job) on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
template <typename Job>
int launch(void (*kernel)(Job), const LaunchShape& shape, const Job& job, void* stream) {
  if (shape.empty()) return static_cast<int>(cudaSuccess);
  if (!shape.possible()) return static_cast<int>(cudaErrorInvalidValue);
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
