// Launches the per-example gradient of an embedding table on a GPU; the bridge between the .cu file
// and the op.
#pragma once

#include "shared/example_embedding_grad.h"

namespace privimage::cuda {

// Queues the kernel on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers of `job` are device memory. Allocates, synchronises and throws nothing.
int launch_example_embedding_grad(const ExampleEmbeddingGrad<Bfloat16>& job, void* stream);
int launch_example_embedding_grad(const ExampleEmbeddingGrad<float>& job, void* stream);
int launch_example_embedding_grad(const ExampleEmbeddingGrad<double>& job, void* stream);

}  // namespace privimage::cuda
