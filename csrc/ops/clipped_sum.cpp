// torch.ops.privimage.clipped_sum: checks, allocates, dispatches.
#include "cpu/clipped_sum.h"

#include <optional>

#include "ops/scaled_arguments.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/clipped_sum.h"
#include "kernels/scaled_sum.h"
#endif

namespace privimage {
namespace {

// Values that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 15;

struct Output {
  Tensor scales;  // float64 [examples]
  Tensor sum;     // int64 [parameters]
};

Output allocate(const Tensor& parts, const ClipRule& rule) {
  check_parts(parts);
  check_positive(rule.max_grad_norm, "max_grad_norm");
  STD_TORCH_CHECK(rule.share > 0.0 && rule.share <= 1.0, "share: expected a number in (0, 1], got ",
                  rule.share);
  STD_TORCH_CHECK(!rule.normalise || (rule.stability >= 1e-30 && rule.stability <= 1e30),
                  "stability: expected a number in [1e-30, 1e30], got ", rule.stability);
  return {torch::stable::new_empty(parts, {parts.size(0)}, ScalarType::Double),
          torch::stable::new_empty(parts, {parts.size(1)}, ScalarType::Long)};
}

template <typename Scalar>
ClippedSum<Scalar> describe(const Tensor& parts, const Output& output, const ClipRule& rule) {
  return {static_cast<const Scalar*>(parts.const_data_ptr()),
          static_cast<double*>(output.scales.mutable_data_ptr()),
          static_cast<int64_t*>(output.sum.mutable_data_ptr()),
          parts.size(0),
          parts.size(1),
          parts.stride(0),
          rule};
}

ClipRule read_rule(double max_grad_norm, double share, const std::optional<double>& stability) {
  return {max_grad_norm, share, stability.has_value(), stability.value_or(0.0)};
}

Tensor clipped_sum_cpu(const Tensor& parts, double max_grad_norm, double share,
                       const std::optional<double>& stability) {
  const ClipRule rule = read_rule(max_grad_norm, share, stability);
  const Output output = allocate(parts, rule);
  in_its_type(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts, output, rule);
    const int64_t rows = kGrain / (job.parameters + 1) + 1;
    torch::stable::parallel_for(0, job.examples, rows, [&](int64_t begin, int64_t end) {
      cpu::clipped_sum_scales(job, begin, end);
    });
    const int64_t columns = kGrain / (job.examples + 1) + 1;
    torch::stable::parallel_for(0, job.parameters, columns, [&](int64_t begin, int64_t end) {
      cpu::clipped_sum_sums(job, begin, end);
    });
  });
  return output.sum;
}

#ifdef PRIVIMAGE_CUDA
Tensor clipped_sum_cuda(const Tensor& parts, double max_grad_norm, double share,
                        const std::optional<double>& stability) {
  const DeviceGuard guard(gpu_of(parts, "parts"));
  const ClipRule rule = read_rule(max_grad_norm, share, stability);
  const Output output = allocate(parts, rule);
  const Tensor partial = torch::stable::new_empty(
      parts, {parts.size(0), cuda::squared_norm_pieces({0, parts.size(1)})}, ScalarType::Double);
  auto* scratch = static_cast<double*>(partial.mutable_data_ptr());
  void* stream = current_cuda_stream(parts.get_device_index());
  in_a_wide_type(parts, "parts", [&](auto zero) {
    const auto job = describe<decltype(zero)>(parts, output, rule);
    const int error = cuda::launch_clipped_sum(job, scratch, stream);
    check_launched(error, "clipped_sum");
  });
  return output.sum;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "clipped_sum(Tensor parts, float max_grad_norm, float share=1.0, float? stability=None) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("clipped_sum", TORCH_BOX(&clipped_sum_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("clipped_sum", TORCH_BOX(&clipped_sum_cuda));
}
#endif

}  // namespace privimage
