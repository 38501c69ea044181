// Norms and scaled sum of kept gradients on a GPU: entry points and launchers; the kernels are in
// scaled_sum.cuh.
#include "kernels/launch.cuh"
#include "kernels/scaled_sum.cuh"
#include "kernels/scaled_sum.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void squares_kernel(const __grid_constant__ SquaredNorms<Scalar> job) {
  write_squares(Block{}, job);
}

__global__ void row_sums_kernel(RowSums job) { add_row(Block{}, job); }

template <typename Scalar>
__global__ void sums_kernel(ScaledSum<Scalar> job) {
  write_sums(Block{}, job);
}

template <typename Scalar>
int launch_norms(const KeptParts<Scalar>& kept, const Columns* columns, int64_t count,
                 double* partial, double* squares, void* stream) {
  const int error = for_each_launch(kept, columns, count, partial,
                                    [&](const auto& job, const LaunchShape& shape) {
                                      return launch(squares_kernel<Scalar>, shape, job, stream);
                                    });
  if (error != 0) return error;
  const int64_t pieces = squared_norm_pieces(columns, count);
  return launch_row_sums(partial, kept.examples, pieces, squares, stream);
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

int launch_squared_norms(const KeptParts<Bfloat16>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream) {
  return launch_norms(job, columns, count, partial, squares, stream);
}
int launch_squared_norms(const KeptParts<float>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream) {
  return launch_norms(job, columns, count, partial, squares, stream);
}
int launch_squared_norms(const KeptParts<double>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream) {
  return launch_norms(job, columns, count, partial, squares, stream);
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
