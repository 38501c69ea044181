// Launches the clipped sum on a GPU; the bridge between the .cu file and the op.
#pragma once

#include "shared/clipped_sum.h"

namespace privimage::cuda {

// Queues the kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none. All
// pointers are device memory; partial [examples, squared_norm_pieces of all columns] is scratch.
// Allocates, synchronises and throws nothing.
int launch_clipped_sum(const ClippedSum<float>& job, double* partial, void* stream);
int launch_clipped_sum(const ClippedSum<double>& job, double* partial, void* stream);

}  // namespace privimage::cuda
