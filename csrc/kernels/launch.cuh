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
// kTooLarge. An error is taken back from CUDA, or whoever launches next would be told of it.
template <typename Job>
int launch(void (*kernel)(Job), const LaunchShape& shape, const Job& job, void* stream) {
  if (shape.empty()) return static_cast<int>(cudaSuccess);
  const int64_t most = most_shared_bytes();
  if (!shape.possible(most)) return kTooLarge;
  constexpr int64_t kWithoutAsking = 48 * 1024;
  // A kernel has one limit on a device, for all threads of the host and for captured launches. So
  // it is the same whatever this launch needs: none is lowered before another launch comes to it.
  if (shape.shared_bytes > kWithoutAsking &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(most)) != cudaSuccess) {
    return static_cast<int>(cudaGetLastError());
  }
  const dim3 blocks(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
  const dim3 threads(static_cast<unsigned>(shape.threads));
  void* arguments[] = {const_cast<Job*>(&job)};
  // Reported by the next line, as is what went wrong before.
  static_cast<void>(cudaLaunchKernel(kernel, blocks, threads, arguments,
                                     static_cast<size_t>(shape.shared_bytes),
                                     static_cast<cudaStream_t>(stream)));
  return static_cast<int>(cudaGetLastError());
}

}  // namespace privimage::cuda
