// torch.ops.privimage.example_embedding_grad: checks, dispatches; writes into the caller's rows.
#include "cpu/example_embedding_grad.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "ops/check.h"

#ifdef PRIVIMAGE_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "kernels/example_embedding_grad.h"
#include "ops/cuda_stream.h"
#endif

namespace privimage {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Values that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 14;

struct Arguments {
  const Tensor &indices, &grad, &weight;
  int64_t padding;
  bool accumulate;
};

void check(const Arguments& given) {
  const Tensor &indices = given.indices, &grad = given.grad, &weight = given.weight;
  STD_TORCH_CHECK(
      indices.scalar_type() == ScalarType::Long && indices.dim() == 2 && indices.is_contiguous(),
      "indices: expected a contiguous int64 tensor [examples, positions]");
  STD_TORCH_CHECK(indices.device() == grad.device(), "indices: expected the device of grad");
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == indices.size(0),
                  "weight: expected [examples, entries, width]");
  STD_TORCH_CHECK(grad.dim() == 3 && grad.is_contiguous() && grad.size(0) == indices.size(0) &&
                      grad.size(1) == indices.size(1) && grad.size(2) == weight.size(2),
                  "grad: expected a contiguous tensor [examples, positions, width]");
  check_beside(weight, wide_type(grad), grad, "weight");
  check_rows(weight, "weight");
}

template <typename Scalar>
ExampleEmbeddingGrad<Scalar> describe(const Arguments& given) {
  return {static_cast<const int64_t*>(given.indices.const_data_ptr()),
          static_cast<const Scalar*>(given.grad.const_data_ptr()),
          static_cast<Wide<Scalar>*>(given.weight.mutable_data_ptr()),
          given.weight.stride(0),
          given.weight.size(0),
          given.indices.size(1),
          given.weight.size(1),
          given.weight.size(2),
          given.padding,
          given.accumulate};
}

// Calls run(job) with the job in the type of grad.
template <typename Run>
void dispatch(const Arguments& given, Run run) {
  const ScalarType type = given.grad.scalar_type();
  if (type == ScalarType::Float) {
    run(describe<float>(given));
  } else if (type == ScalarType::Double) {
    run(describe<double>(given));
  } else {
    STD_TORCH_CHECK(false, "grad: expected float32 or float64");
  }
}

void example_embedding_grad_cpu(const Tensor indices, const Tensor grad, const Tensor weight,
                                int64_t padding_idx, bool accumulate) {
  const Arguments given{indices, grad, weight, padding_idx, accumulate};
  check(given);
  dispatch(given, [](const auto& job) {
    const int64_t work = (job.entries + job.positions) * job.width;
    torch::stable::parallel_for(
        0, job.examples, kGrain / (work + 1) + 1,
        [&](int64_t begin, int64_t end) { cpu::example_embedding_grad(job, begin, end); });
  });
}

#ifdef PRIVIMAGE_CUDA
void example_embedding_grad_cuda(const Tensor indices, const Tensor grad, const Tensor weight,
                                 int64_t padding_idx, bool accumulate) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Arguments given{indices, grad, weight, padding_idx, accumulate};
  check(given);
  void* stream = current_cuda_stream(grad.get_device_index());
  const auto run = [stream](const auto& job) {
    const int error = cuda::launch_example_embedding_grad(job, stream);
    STD_TORCH_CHECK(error == 0, "example_embedding_grad: CUDA error ", error);
  };
  if (grad.scalar_type() == ScalarType::BFloat16) {
    run(describe<Bfloat16>(given));
  } else {
    dispatch(given, run);
  }
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "example_embedding_grad(Tensor indices, Tensor grad, Tensor(a!) weight, int padding_idx, "
      "bool accumulate) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("example_embedding_grad", TORCH_BOX(&example_embedding_grad_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("example_embedding_grad", TORCH_BOX(&example_embedding_grad_cuda));
}
#endif

}  // namespace privimage
