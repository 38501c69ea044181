// The last pass of a private step on a GPU: noise and update of eight parameters a thread.
#include <cuda_runtime.h>

#include "kernels/private_update.h"

namespace privimage::cuda {
namespace {

constexpr int kThreads = 256;

// ---------------------------------------------------------------------------------------- kernels

// One thread a ChaCha20 block.
template <bool kAdam, bool kAverage>
__global__ void update_kernel(UpdateOnGpu job) {
  const int64_t block = job.update.first_index / kTile * kLanes +
                        static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  update_block<kAdam, kAverage>(job.update, job.key, static_cast<uint64_t>(*job.step), block);
}

// After the pass, in the same stream: no step is ever drawn twice.
__global__ void next_step_kernel(int64_t* step) { ++*step; }

// --------------------------------------------------------------------------------------- launcher

template <bool kAdam, bool kAverage>
void launch(const UpdateOnGpu& job, cudaStream_t queue) {
  const int64_t first = job.update.first_index / kTile;
  const int64_t end = (job.update.first_index + job.update.count + kTile - 1) / kTile;
  const int64_t grid = ((end - first) * kLanes + kThreads - 1) / kThreads;
  // A grid of no blocks is an error to CUDA, and nothing to do for us.
  if (grid > 0) {
    update_kernel<kAdam, kAverage><<<static_cast<unsigned>(grid), kThreads, 0, queue>>>(job);
  }
  next_step_kernel<<<1, 1, 0, queue>>>(job.step);
}

}  // namespace

int launch_private_update(const UpdateOnGpu& job, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const bool average = job.update.average != nullptr;
  if (job.update.second_moment != nullptr) {
    average ? launch<true, true>(job, queue) : launch<true, false>(job, queue);
  } else {
    average ? launch<false, true>(job, queue) : launch<false, false>(job, queue);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace privimage::cuda
