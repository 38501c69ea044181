// The clipped sum on a GPU: entry points and launcher; the kernels are in clipped_sum.cuh.
#include "kernels/clipped_sum.cuh"
#include "kernels/clipped_sum.h"
#include "kernels/launch.cuh"

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
int launch_both(const ClippedSum<Scalar>& job, void* stream) {
  const int error = launch(scales_kernel<Scalar>, scales_launch(job.examples), job, stream);
  return error != 0 ? error : launch(sums_kernel<Scalar>, sums_launch(job.parameters), job, stream);
}

}  // namespace

int launch_clipped_sum(const ClippedSum<float>& job, void* stream) {
  return launch_both(job, stream);
}
int launch_clipped_sum(const ClippedSum<double>& job, void* stream) {
  return launch_both(job, stream);
}

}  // namespace privimage::cuda
