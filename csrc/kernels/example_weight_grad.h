// Launches the per-example weight gradient on a GPU; the bridge between the .cu file and the ops.
#pragma once

#include "kernels/weight_grad.h"

namespace privimage::cuda {

// How many squares an example the launcher writes, where it is asked for them; pointers that are
// null or not change nothing.
int64_t weight_grad_slots(const WeightGradOnGpu<Bfloat16>& job);
int64_t weight_grad_slots(const WeightGradOnGpu<float>& job);
int64_t weight_grad_slots(const WeightGradOnGpu<double>& job);

// Queues the kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers of `job` are device memory. Allocates, synchronises and throws nothing.
int launch_example_weight_grad(const WeightGradOnGpu<Bfloat16>& job, void* stream);
int launch_example_weight_grad(const WeightGradOnGpu<float>& job, void* stream);
int launch_example_weight_grad(const WeightGradOnGpu<double>& job, void* stream);

}  // namespace privimage::cuda
