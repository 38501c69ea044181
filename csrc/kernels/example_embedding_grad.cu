// The per-example gradient of an embedding table on a GPU: entry points and launcher; the kernel is
// in example_embedding_grad.cuh.
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
int launch_table(const ExampleEmbeddingGrad<Scalar>& job, void* stream) {
  return launch(embedding_kernel<Scalar>, embedding_launch(job.examples, job.width), job, stream);
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

}  // namespace privimage::cuda
