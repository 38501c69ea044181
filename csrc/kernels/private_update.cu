// The last pass of a private step on a GPU: entry point and launcher; the kernels are in
// private_update.cuh.
#include "kernels/launch.cuh"
#include "kernels/private_update.cuh"

namespace privimage::cuda {
namespace {

template <bool kAdam, bool kAverage>
__global__ void __launch_bounds__(kUpdateThreads, 3) update_kernel(UpdateOnGpu job) {
  update_parameters<kAdam, kAverage>(Block{}, job);
}

__global__ void count_step_kernel(UpdateOnGpu job) { count_step(Block{}, job); }

template <bool kAdam, bool kAverage>
int launch_update(const UpdateOnGpu& job, void* stream) {
  return launch(update_kernel<kAdam, kAverage>, update_launch(job.update), job, stream);
}

}  // namespace

int launch_private_update(const UpdateOnGpu& job, void* stream) {
  const bool average = job.update.average != nullptr;
  int error;
  if (job.update.second_moment != nullptr) {
    error =
        average ? launch_update<true, true>(job, stream) : launch_update<true, false>(job, stream);
  } else {
    error = average ? launch_update<false, true>(job, stream)
                    : launch_update<false, false>(job, stream);
  }
  // In the same stream after the pass, whatever that had to do: no step is ever drawn twice.
  return error != 0 ? error : launch(count_step_kernel, {1, 1, 32, 0}, job, stream);
}

}  // namespace privimage::cuda
