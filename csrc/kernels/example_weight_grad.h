// Launches the per-example weight gradient on a GPU; the bridge between the .cu file and the op.
#pragma once

#include "shared/example_weight_grad.h"

namespace privimage::cuda {

// Queues the kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers of `job` are device memory. Allocates, synchronises and throws nothing.
int launch_example_weight_grad(const ExampleWeightGrad<Bfloat16>& job, void* stream);
int launch_example_weight_grad(const ExampleWeightGrad<float>& job, void* stream);
int launch_example_weight_grad(const ExampleWeightGrad<double>& job, void* stream);

}  // namespace privimage::cuda
