// The clipped sum on a GPU: entry points and launcher. Norms and sum are those of scaled_sum.h.
#include "kernels/clipped_sum.cuh"
#include "kernels/clipped_sum.h"
#include "kernels/launch.cuh"
#include "kernels/scaled_sum.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void scales_kernel(ClippedSum<Scalar> job) {
  write_scales(Block{}, job);
}

template <typename Scalar>
int launch_all(const ClippedSum<Scalar>& job, double* partial, void* stream) {
  const KeptParts<Scalar> kept{job.parts, job.row_stride, job.examples, job.parameters};
  const Columns all{0, job.parameters};
  int error = launch_squared_norms(kept, &all, 1, partial, job.scales, stream);
  if (error == 0) {
    error = launch(scales_kernel<Scalar>, scales_launch(job.examples), job, stream);
  }
  return error != 0 ? error : launch_scaled_sum(kept, job.scales, false, job.sum, stream);
}

}  // namespace

int launch_clipped_sum(const ClippedSum<float>& job, double* partial, void* stream) {
  return launch_all(job, partial, stream);
}
int launch_clipped_sum(const ClippedSum<double>& job, double* partial, void* stream) {
  return launch_all(job, partial, stream);
}

}  // namespace privimage::cuda
