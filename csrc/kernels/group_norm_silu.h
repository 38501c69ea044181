// Launches the fused normalisation on a GPU; the bridge between the .cu file and the op.
#pragma once

#include "kernels/grad_rows.h"
#include "kernels/group_norm_plan.h"
#include "shared/group_norm_silu.h"

namespace privimage::cuda {

template <typename Scalar>
struct GroupNormOnGpu {
  GroupNormSilu<Scalar> job;
  GroupNormPlan plan;
};

// The gradients of weight and bias, [examples, channels] each.
template <typename Real>
struct AffineRows {
  GradRows<Real> weight, bias;

  PRIVIMAGE_HOST_DEVICE bool asked() const { return weight.asked() || bias.asked(); }
};

template <typename Scalar>
struct GroupNormBackwardOnGpu {
  GroupNormSiluBackward<Scalar> job;  // but for its own rows, which are not looked at
  AffineRows<Wide<Scalar>> rows;
  GroupNormPlan plan;
  Wide<Scalar>* row_sums;  // [rows, 2, channels], scratch; null where no weight has a gradient
};

// Each queues its kernels on `stream` (a cudaStream_t) and returns the CUDA error code, 0 for none.
// All pointers are device memory. Allocates, synchronises and throws nothing.
int launch_group_norm_silu(const GroupNormSilu<Bfloat16>& job, void* stream);
int launch_group_norm_silu(const GroupNormSilu<float>& job, void* stream);
int launch_group_norm_silu(const GroupNormSilu<double>& job, void* stream);

// `row_sums` is memory for [rows, 2, channels].
int launch_group_norm_silu_backward(const GroupNormSiluBackward<Bfloat16>& job,
                                    const AffineRows<float>& rows, float* row_sums, void* stream);
int launch_group_norm_silu_backward(const GroupNormSiluBackward<float>& job,
                                    const AffineRows<float>& rows, float* row_sums, void* stream);
int launch_group_norm_silu_backward(const GroupNormSiluBackward<double>& job,
                                    const AffineRows<double>& rows, double* row_sums, void* stream);

}  // namespace privimage::cuda
