// Norms and scaled sum of kept gradients on a GPU: entry points and launchers; the kernels are in
// scaled_sum.cuh.
#include "kernels/launch.cuh"
#include "kernels/scaled_sum.cuh"
#include "kernels/scaled_sum.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void squares_kernel(SquaredNorms<Scalar> job) {
  write_squares(Block{}, job);
}

__global__ void row_sums_kernel(RowSums job) { add_row(Block{}, job); }

template <typename Scalar>
__global__ void sums_kernel(ScaledSum<Scalar> job) {
  write_sums(Block{}, job);
}

template <typename Scalar>
int launch_norms(const KeptParts<Scalar>& kept, double* partial, double* squares, void* stream) {
  const LaunchShape shape = squares_launch(kept.examples, kept.parameters);
  const SquaredNorms<Scalar> job{kept, partial};
  const int error = launch(squares_kernel<Scalar>, shape, job, stream);
  return error != 0 ? error
                    : launch_row_sums(partial, kept.examples, shape.blocks_y, squares, stream);
}

template <typename Scalar>
int launch_sum(const KeptParts<Scalar>& kept, const double* scales, bool accumulate, int64_t* sum,
               void* stream) {
  const ScaledSum<Scalar> job{kept, scales, accumulate, sum};
  return launch(sums_kernel<Scalar>, sums_launch(kept.parameters), job, stream);
}

}  // namespace

int launch_row_sums(const double* partial, int64_t rows, int64_t count, double* sums,
                    void* stream) {
  const RowSums job{partial, rows, count, sums};
  return launch(row_sums_kernel, row_sums_launch(rows), job, stream);
}

int launch_squared_norms(const KeptParts<Bfloat16>& job, double* partial, double* squares,
                         void* stream) {
  return launch_norms(job, partial, squares, stream);
}
int launch_squared_norms(const KeptParts<float>& job, double* partial, double* squares,
                         void* stream) {
  return launch_norms(job, partial, squares, stream);
}
int launch_squared_norms(const KeptParts<double>& job, double* partial, double* squares,
                         void* stream) {
  return launch_norms(job, partial, squares, stream);
}

int launch_scaled_sum(const KeptParts<Bfloat16>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream) {
  return launch_sum(job, scales, accumulate, sum, stream);
}
int launch_scaled_sum(const KeptParts<float>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream) {
  return launch_sum(job, scales, accumulate, sum, stream);
}
int launch_scaled_sum(const KeptParts<double>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream) {
  return launch_sum(job, scales, accumulate, sum, stream);
}

}  // namespace privimage::cuda
