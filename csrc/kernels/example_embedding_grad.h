// Launches the per-example gradient of an embedding table on a GPU, as a table or by entry; the
// bridge between the .cu file and the ops.
#pragma once

#include "shared/example_embedding_grad.h"

namespace privimage::cuda {

// What is made of the gradients without a table: squares, a sum or both, of the same values.
template <typename Scalar>
struct EmbeddingByEntry {
  ExampleEmbeddingGrad<Scalar> read;  // its weight is not looked at
  double* squares;                    // [examples, positions], an example's add up; or null
  const double* scales;               // [examples], see grid_scale; read where there is a sum
  int64_t* sum;                       // [entries, width] in grid steps, added to; or null
};

// Each queues its kernel the kernel on `stream` (a cudaStream_t) and returns the CUDA error code, 0
// for none. All pointers of `job` are device memory. Allocates, synchronises and throws nothing.
int launch_example_embedding_grad(const ExampleEmbeddingGrad<Bfloat16>& job, void* stream);
int launch_example_embedding_grad(const ExampleEmbeddingGrad<float>& job, void* stream);
int launch_example_embedding_grad(const ExampleEmbeddingGrad<double>& job, void* stream);

int launch_embedding_by_entry(const EmbeddingByEntry<Bfloat16>& job, void* stream);
int launch_embedding_by_entry(const EmbeddingByEntry<float>& job, void* stream);
int launch_embedding_by_entry(const EmbeddingByEntry<double>& job, void* stream);

}  // namespace privimage::cuda
