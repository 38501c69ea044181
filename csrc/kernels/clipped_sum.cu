// The clipped sum on a GPU: one pass for the norms, one for the sum; both read every part once.
#include <cuda_runtime.h>

#include "kernels/clipped_sum.h"
#include "shared/grid.h"

namespace privimage::cuda {
namespace {

constexpr int kThreads = 256;

// ---------------------------------------------------------------------------------------- kernels

// One block an example. Thread t adds the squares t, t + 256, …; the tree below adds the threads in
// a fixed order, so that the norm is the same in every run.
template <typename Scalar>
__global__ void scales_kernel(ClippedSum<Scalar> job) {
  __shared__ double partial[kThreads];
  const Scalar* row = job.parts + static_cast<int64_t>(blockIdx.x) * job.parameters;
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < job.parameters; i += kThreads) {
    const double value = row[i];
    squares += value * value;
  }
  partial[threadIdx.x] = squares;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) job.scales[blockIdx.x] = grid_scale(partial[0], job.max_grad_norm);
}

// One thread a parameter: neighbouring threads read neighbouring values of each row. Integers, so
// no order to keep; one writer an element, so no atomics.
template <typename Scalar>
__global__ void sums_kernel(ClippedSum<Scalar> job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= job.parameters) return;
  int64_t sum = 0;
  for (int64_t example = 0; example < job.examples; ++example) {
    const double scale = job.scales[example];
    if (scale != 0.0) sum += grid_coordinate(job.parts[example * job.parameters + i], scale);
  }
  job.sum[i] = sum;
}

// --------------------------------------------------------------------------------------- launcher

template <typename Scalar>
int launch(const ClippedSum<Scalar>& job, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  // A grid of no blocks is an error to CUDA, and nothing to do for us.
  if (job.examples > 0) {
    scales_kernel<<<static_cast<unsigned>(job.examples), kThreads, 0, queue>>>(job);
  }
  if (job.parameters > 0) {
    const int64_t blocks = (job.parameters + kThreads - 1) / kThreads;
    sums_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, queue>>>(job);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_clipped_sum(const ClippedSum<float>& job, void* stream) { return launch(job, stream); }
int launch_clipped_sum(const ClippedSum<double>& job, void* stream) { return launch(job, stream); }

}  // namespace privimage::cuda
