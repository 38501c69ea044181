// The fused normalisation on a GPU: entry points and launcher; the kernels are in
// group_norm_silu.cuh.
#include "kernels/group_norm_silu.cuh"
#include "kernels/launch.cuh"

namespace privimage::cuda {
namespace {

template <typename Scalar, int kValues, bool kLast>
__global__ void __launch_bounds__(kMostNormThreads, 2)
    forward_kernel(GroupNormOnGpu<Scalar> given) {
  group_norm_forward<Scalar, kValues, kLast>(Block{}, given);
}

template <typename Scalar, int kValues, bool kLast>
__global__ void __launch_bounds__(kMostNormThreads, 2)
    backward_kernel(GroupNormBackwardOnGpu<Scalar> given) {
  group_norm_backward<Scalar, kValues, kLast>(Block{}, given);
}

template <typename Scalar>
__global__ void affine_kernel(GroupNormBackwardOnGpu<Scalar> given) {
  group_norm_affine(Block{}, given);
}

// Calls run(values of a vector, channels last) with what the plan says, as types.
template <typename Scalar, typename Run>
int choose_kernel(const GroupNormShape& shape, const GroupNormPlan& plan, Run run) {
  if (!plan.fits) return kTooLarge;
  if constexpr (sizeof(Scalar) <= 4) {
    using Count = std::integral_constant<int, kVectorBytes / sizeof(Scalar)>;
    if (plan.vectors) {
      return shape.channels_last ? run(Count{}, std::true_type{}) : run(Count{}, std::false_type{});
    }
  }
  return run(std::integral_constant<int, 1>{}, std::false_type{});
}

template <typename... Pointers>
bool aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kVectorBytes == 0) && ...);
}

template <typename Scalar>
int forward(const GroupNormSilu<Scalar>& job, void* stream) {
  const GroupNormPlan plan =
      plan_group_norm<Scalar>(job.shape, 1, aligned(job.x, job.y), most_shared_bytes());
  return choose_kernel<Scalar>(job.shape, plan, [&](auto values, auto last) {
    return launch(forward_kernel<Scalar, decltype(values)::value, decltype(last)::value>,
                  group_norm_launch(job.shape, plan), GroupNormOnGpu<Scalar>{job, plan}, stream);
  });
}

template <typename Scalar>
int backward(const GroupNormSiluBackward<Scalar>& job, const AffineRows<Wide<Scalar>>& rows,
             Wide<Scalar>* row_sums, void* stream) {
  const GroupNormPlan plan = plan_group_norm<Scalar>(
      job.shape, 2, aligned(job.x, job.grad, job.grad_x), most_shared_bytes());
  const GroupNormBackwardOnGpu<Scalar> given{job, rows, plan, rows.asked() ? row_sums : nullptr};
  const int error = choose_kernel<Scalar>(job.shape, plan, [&](auto values, auto last) {
    return launch(backward_kernel<Scalar, decltype(values)::value, decltype(last)::value>,
                  group_norm_launch(job.shape, plan), given, stream);
  });
  if (error != 0 || !rows.asked()) return error;
  return launch(affine_kernel<Scalar>, affine_launch(job.shape), given, stream);
}

}  // namespace

int launch_group_norm_silu(const GroupNormSilu<Bfloat16>& job, void* stream) {
  return forward(job, stream);
}
int launch_group_norm_silu(const GroupNormSilu<float>& job, void* stream) {
  return forward(job, stream);
}
int launch_group_norm_silu(const GroupNormSilu<double>& job, void* stream) {
  return forward(job, stream);
}

int launch_group_norm_silu_backward(const GroupNormSiluBackward<Bfloat16>& job,
                                    const AffineRows<float>& rows, float* row_sums, void* stream) {
  return backward(job, rows, row_sums, stream);
}
int launch_group_norm_silu_backward(const GroupNormSiluBackward<float>& job,
                                    const AffineRows<float>& rows, float* row_sums, void* stream) {
  return backward(job, rows, row_sums, stream);
}
int launch_group_norm_silu_backward(const GroupNormSiluBackward<double>& job,
                                    const AffineRows<double>& rows, double* row_sums,
                                    void* stream) {
  return backward(job, rows, row_sums, stream);
}

}  // namespace privimage::cuda
