// The clipped sum on a GPU: entry points and launcher; the kernels are in clipped_sum.cuh.
#include "kernels/clipped_sum.cuh"
#include "kernels/clipped_sum.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void scales_kernel(ClippedSum<Scalar> job) {
  write_scales(Block{}, job);
}

template <typename Scalar>
__global__ void sums_kernel(ClippedSum<Scalar> job) {
  write_sums(Block{}, job);
}

template <typename Scalar>
int launch(const ClippedSum<Scalar>& job, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  // A grid of no blocks is an error to CUDA, and nothing to do for us.
  if (job.examples > 0) {
    scales_kernel<<<static_cast<unsigned>(job.examples), kClippedSumThreads, kScalesSharedBytes,
                    queue>>>(job);
  }
  if (job.parameters > 0) {
    const int64_t blocks = (job.parameters + kClippedSumThreads - 1) / kClippedSumThreads;
    sums_kernel<<<static_cast<unsigned>(blocks), kClippedSumThreads, 0, queue>>>(job);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_clipped_sum(const ClippedSum<float>& job, void* stream) { return launch(job, stream); }
int launch_clipped_sum(const ClippedSum<double>& job, void* stream) { return launch(job, stream); }

}  // namespace privimage::cuda
