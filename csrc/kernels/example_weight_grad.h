// Launches per-example weight gradients on a GPU; the bridge between the .cu file and the ops.
#pragma once

#include "kernels/weight_grad.h"

namespace privimage::cuda {

// How many squares an example the launcher writes for a layer, where it is asked for them; pointers
// that are null or not change nothing.
int64_t weight_grad_slots(const WeightGradOnGpu<Bfloat16>& job);
int64_t weight_grad_slots(const WeightGradOnGpu<float>& job);
int64_t weight_grad_slots(const WeightGradOnGpu<double>& job);

// Queues the kernels for `count` layers of as many examples each, at most kMostLayers, on `stream`
// (a cudaStream_t) and returns the CUDA error code, 0 for none. Layers of one tap share a
// launch. All pointers of `jobs` are device memory. Allocates, synchronises and throws nothing.
int launch_example_weight_grads(const WeightGradOnGpu<Bfloat16>* jobs, int count, void* stream);
int launch_example_weight_grads(const WeightGradOnGpu<float>* jobs, int count, void* stream);
int launch_example_weight_grads(const WeightGradOnGpu<double>* jobs, int count, void* stream);

}  // namespace privimage::cuda
