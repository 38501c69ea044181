// torch.ops.privimage.clipped_sum: checks, allocates, dispatches.
#include "cpu/clipped_sum.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/check.h"

#ifdef PRIVIMAGE_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "kernels/clipped_sum.h"
#include "ops/cuda_stream.h"
#endif

namespace privimage {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Values that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 15;

struct Output {
  Tensor scales;  // float64 [examples]
  Tensor sum;     // int64 [parameters]
};

Output allocate(const Tensor& parts, double max_grad_norm) {
  check_matrix(parts, "parts");
  check_positive(max_grad_norm, "max_grad_norm");
  return {torch::stable::new_empty(parts, {parts.size(0)}, ScalarType::Double),
          torch::stable::new_empty(parts, {parts.size(1)}, ScalarType::Long)};
}

template <typename Scalar>
ClippedSum<Scalar> describe(const Tensor& parts, const Output& output, double max_grad_norm) {
  return {static_cast<const Scalar*>(parts.const_data_ptr()),
          static_cast<double*>(output.scales.mutable_data_ptr()),
          static_cast<int64_t*>(output.sum.mutable_data_ptr()),
          parts.size(0),
          parts.size(1),
          max_grad_norm};
}

// Calls run(job) with the job in the type of `parts`.
template <typename Run>
void dispatch(const Tensor& parts, const Output& output, double max_grad_norm, Run run) {
  const ScalarType type = parts.scalar_type();
  if (type == ScalarType::Float) {
    run(describe<float>(parts, output, max_grad_norm));
  } else if (type == ScalarType::Double) {
    run(describe<double>(parts, output, max_grad_norm));
  } else {
    STD_TORCH_CHECK(false, "parts: expected float32 or float64");
  }
}

Tensor clipped_sum_cpu(const Tensor& parts, double max_grad_norm) {
  const Output output = allocate(parts, max_grad_norm);
  dispatch(parts, output, max_grad_norm, [](const auto& job) {
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
Tensor clipped_sum_cuda(const Tensor& parts, double max_grad_norm) {
  const torch::stable::accelerator::DeviceGuard guard(parts.get_device_index());
  const Output output = allocate(parts, max_grad_norm);
  void* stream = current_cuda_stream(parts.get_device_index());
  dispatch(parts, output, max_grad_norm, [stream](const auto& job) {
    const int error = cuda::launch_clipped_sum(job, stream);
    STD_TORCH_CHECK(error == 0, "clipped_sum: CUDA error ", error);
  });
  return output.sum;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def("clipped_sum(Tensor parts, float max_grad_norm) -> Tensor");
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
