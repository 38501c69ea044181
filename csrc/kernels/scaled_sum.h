// Launches the norms and the scaled sum of kept gradients on a GPU; the bridge between the .cu file
// and the ops.
#pragma once

#include <cstdint>

#include "shared/bfloat16.h"
#include "shared/host_device.h"
#include "shared/scaled_sum.h"

namespace privimage::cuda {

// Each queues its kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers are device memory. None allocates, synchronises or throws.

// Squares are added up in pieces of so many columns: a block each.
constexpr int64_t kPiece = 1 << 14;

PRIVIMAGE_HOST_DEVICE int64_t squared_norm_pieces(const Columns& columns) {
  return (columns.end - columns.begin + kPiece - 1) / kPiece;
}
inline int64_t squared_norm_pieces(const Columns* columns, int64_t count) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) pieces += squared_norm_pieces(columns[i]);
  return pieces;
}

// Writes squares [examples], of `count` ranges of columns together, which lie in the memory of the
// host; partial [examples, squared_norm_pieces] is scratch.
int launch_squared_norms(const KeptParts<Bfloat16>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream);
int launch_squared_norms(const KeptParts<float>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream);
int launch_squared_norms(const KeptParts<double>& job, const Columns* columns, int64_t count,
                         double* partial, double* squares, void* stream);

// partial [rows, count] -> sums [rows].
int launch_row_sums(const double* partial, int64_t rows, int64_t count, double* sums, void* stream);

// scales [examples], see grid_scale; writes sum [parameters] in grid steps, or adds to it.
int launch_scaled_sum(const KeptParts<Bfloat16>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream);
int launch_scaled_sum(const KeptParts<float>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream);
int launch_scaled_sum(const KeptParts<double>& job, const double* scales, bool accumulate,
                      int64_t* sum, void* stream);

}  // namespace privimage::cuda
