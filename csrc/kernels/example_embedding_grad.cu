// The per-example gradient of an embedding table on a GPU: entry points and launchers; the kernels
// are in example_embedding_grad.cuh.
#include "kernels/example_embedding_grad.cuh"
#include "kernels/example_embedding_grad.h"
#include "kernels/launch.cuh"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void embedding_kernel(ExampleEmbeddingGrad<Scalar> job) {
  embedding_grad(Block{}, job);
}

template <typename Scalar>
__global__ void by_entry_kernel(EmbeddingByEntry<Scalar> job) {
  embedding_by_entry(Block{}, job);
}

template <typename Scalar>
int launch_table(const ExampleEmbeddingGrad<Scalar>& job, void* stream) {
  return launch(embedding_kernel<Scalar>, embedding_launch(job.examples, job.width), job, stream);
}

template <typename Scalar>
int launch_by_entry(const EmbeddingByEntry<Scalar>& job, void* stream) {
  return launch(by_entry_kernel<Scalar>, by_entry_launch(job.read), job, stream);
}

}  // namespace

int launch_example_embedding_grad(const ExampleEmbeddingGrad<Bfloat16>& job, void* stream) {
  return launch_table(job, stream);
}
int launch_example_embedding_grad(const ExampleEmbeddingGrad<float>& job, void* stream) {
  return launch_table(job, stream);
}
int launch_example_embedding_grad(const ExampleEmbeddingGrad<double>& job, void* stream) {
  return launch_table(job, stream);
}

int launch_embedding_by_entry(const EmbeddingByEntry<Bfloat16>& job, void* stream) {
  return launch_by_entry(job, stream);
}
int launch_embedding_by_entry(const EmbeddingByEntry<float>& job, void* stream) {
  return launch_by_entry(job, stream);
}
int launch_embedding_by_entry(const EmbeddingByEntry<double>& job, void* stream) {
  return launch_by_entry(job, stream);
}

}  // namespace privimage::cuda
