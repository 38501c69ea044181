// Launches the fused normalisation on a GPU; the bridge between the .cu file and the op.
#pragma once

#include "kernels/group_norm_plan.h"
#include "shared/group_norm_silu.h"

namespace privimage::cuda {

template <typename Scalar>
struct GroupNormOnGpu {
  GroupNormSilu<Scalar> job;
  GroupNormPlan plan;
};

template <typename Scalar>
struct GroupNormBackwardOnGpu {
  GroupNormSiluBackward<Scalar> job;
  GroupNormPlan plan;
  Wide<Scalar>* row_sums;  // [rows, 2, channels], scratch; null where no weight has a gradient
};

// Each queues its kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers are device memory. Allocates, synchronises and throws nothing.
int launch_group_norm_silu(const GroupNormSilu<Bfloat16>& job, void* stream);
int launch_group_norm_silu(const GroupNormSilu<float>& job, void* stream);
int launch_group_norm_silu(const GroupNormSilu<double>& job, void* stream);

// `row_sums` is memory for [rows, 2, channels].
int launch_group_norm_silu_backward(const GroupNormSiluBackward<Bfloat16>& job, float* row_sums,
                                    void* stream);
int launch_group_norm_silu_backward(const GroupNormSiluBackward<float>& job, float* row_sums,
                                    void* stream);
int launch_group_norm_silu_backward(const GroupNormSiluBackward<double>& job, double* row_sums,
                                    void* stream);

}  // namespace privimage::cuda
