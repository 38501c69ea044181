// Launches the clipped sum on a GPU; the bridge between the .cu file and the op.
#pragma once

#include "shared/clipped_sum.h"

namespace privimage::cuda {

// Queues both kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers of `job` are device memory. Allocates, synchronises and throws nothing.
int launch_clipped_sum(const ClippedSum<float>& job, void* stream);
int launch_clipped_sum(const ClippedSum<double>& job, void* stream);

}  // namespace privimage::cuda
