// torch.ops.privimage.example_embedding_grad, and example_embedding_norms and
// recomputed_embedding_sum, which need no tables: checks, allocates, dispatches.
#include "cpu/example_embedding_grad.h"

#include <vector>

#include "ops/scaled_arguments.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/example_embedding_grad.h"
#include "ops/example_squares.h"
#endif

namespace privimage {
namespace {

// Values that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 14;

struct Arguments {
  const Tensor &indices, &grad, &weight;
  int64_t padding;
  bool accumulate;
};

// indices [examples, positions] and grad [examples, positions, width].
void check_read(const Tensor& indices, const Tensor& grad) {
  check_type(indices, ScalarType::Long, "indices");
  check_shape(indices, "indices", {kAnySize, kAnySize});
  check_shape(grad, "grad", {indices.size(0), indices.size(1), kAnySize});
  check_contiguous(indices, "indices");
  check_contiguous(grad, "grad");
  check_device(indices, grad, "indices");
}

void check(const Arguments& given) {
  check_read(given.indices, given.grad);
  check_shape(given.weight, "weight", {given.indices.size(0), kAnySize, given.grad.size(2)});
  check_beside(given.weight, wide_type(given.grad), given.grad, "weight");
  check_rows(given.weight, "weight");
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

// The same without tables.
template <typename Scalar>
ExampleEmbeddingGrad<Scalar> describe(const Tensor& indices, const Tensor& grad, int64_t entries,
                                      int64_t padding) {
  return {static_cast<const int64_t*>(indices.const_data_ptr()),
          static_cast<const Scalar*>(grad.const_data_ptr()),
          nullptr,
          0,
          indices.size(0),
          indices.size(1),
          entries,
          grad.size(2),
          padding,
          false};
}

void example_embedding_grad_cpu(const Tensor indices, const Tensor grad, const Tensor weight,
                                int64_t padding_idx, bool accumulate) {
  const Arguments given{indices, grad, weight, padding_idx, accumulate};
  check(given);
  in_its_type(grad, "grad", [&](auto zero) {
    const auto job = describe<decltype(zero)>(given);
    const int64_t work = (job.entries + job.positions) * job.width;
    torch::stable::parallel_for(
        0, job.examples, kGrain / (work + 1) + 1,
        [&](int64_t begin, int64_t end) { cpu::example_embedding_grad(job, begin, end); });
  });
}

// The positions of every example by what was read there.
template <typename Scalar>
std::vector<int64_t> by_entry(const ExampleEmbeddingGrad<Scalar>& job) {
  std::vector<int64_t> order(job.examples * job.positions);
  torch::stable::parallel_for(
      0, job.examples, kGrain / (16 * job.positions + 1) + 1,
      [&](int64_t begin, int64_t end) { cpu::sort_by_entry(job, order.data(), begin, end); });
  return order;
}

Tensor example_embedding_norms_cpu(const Tensor indices, const Tensor grad, int64_t entries,
                                   int64_t padding_idx) {
  check_read(indices, grad);
  Tensor squares = torch::stable::new_empty(grad, {indices.size(0)}, ScalarType::Double);
  auto* out = static_cast<double*>(squares.mutable_data_ptr());
  in_its_type(grad, "grad", [&](auto zero) {
    const auto job = describe<decltype(zero)>(indices, grad, entries, padding_idx);
    const std::vector<int64_t> order = by_entry(job);
    torch::stable::parallel_for(0, job.examples, kGrain / (job.positions * job.width + 1) + 1,
                                [&](int64_t begin, int64_t end) {
                                  cpu::embedding_norms(job, order.data(), out, begin, end);
                                });
  });
  return squares;
}

// weight_sum [entries, width].
int64_t* table_of(const Tensor& weight_sum, const Tensor& grad) {
  check_shape(weight_sum, "weight_sum", {kAnySize, grad.size(2)});
  return sum_of(weight_sum, weight_sum.numel(), grad, "weight_sum");
}

void recomputed_embedding_sum_cpu(const Tensor indices, const Tensor grad, const Tensor scales,
                                  const Tensor weight_sum, int64_t padding_idx) {
  check_read(indices, grad);
  const double* factors = read_scales(scales, grad, grad.size(0));
  int64_t* sums = table_of(weight_sum, grad);
  in_its_type(grad, "grad", [&](auto zero) {
    const auto job = describe<decltype(zero)>(indices, grad, weight_sum.size(0), padding_idx);
    const std::vector<int64_t> order = by_entry(job);
    torch::stable::parallel_for(0, job.width, kGrain / (job.examples * job.positions + 1) + 1,
                                [&](int64_t first, int64_t last) {
                                  cpu::recomputed_embedding_sum(job, order.data(), factors, sums,
                                                                first, last);
                                });
  });
}

#ifdef PRIVIMAGE_CUDA
void example_embedding_grad_cuda(const Tensor indices, const Tensor grad, const Tensor weight,
                                 int64_t padding_idx, bool accumulate) {
  const DeviceGuard guard(gpu_of(grad, "grad"));
  const Arguments given{indices, grad, weight, padding_idx, accumulate};
  check(given);
  void* stream = current_cuda_stream(grad.get_device_index());
  in_its_type_on_gpu(grad, "grad", [&](auto zero) {
    const auto job = describe<decltype(zero)>(given);
    check_launched(cuda::launch_example_embedding_grad(job, stream), "example_embedding_grad");
  });
}

Tensor example_embedding_norms_cuda(const Tensor indices, const Tensor grad, int64_t entries,
                                    int64_t padding_idx) {
  const DeviceGuard guard(gpu_of(grad, "grad"));
  check_read(indices, grad);
  ExampleSquares squares(grad, indices.size(0));
  double* slots = squares.slots(indices.size(1));
  void* stream = current_cuda_stream(grad.get_device_index());
  in_its_type_on_gpu(grad, "grad", [&](auto zero) {
    using Scalar = decltype(zero);
    const auto read = describe<Scalar>(indices, grad, entries, padding_idx);
    int error = cuda::launch_embedding_by_entry(
        cuda::EmbeddingByEntry<Scalar>{read, slots, nullptr, nullptr}, stream);
    if (error == 0) error = squares.add_up(stream);
    check_launched(error, "example_embedding_norms");
  });
  return squares.total();
}

void recomputed_embedding_sum_cuda(const Tensor indices, const Tensor grad, const Tensor scales,
                                   const Tensor weight_sum, int64_t padding_idx) {
  const DeviceGuard guard(gpu_of(grad, "grad"));
  check_read(indices, grad);
  const double* factors = read_scales(scales, grad, grad.size(0));
  int64_t* sums = table_of(weight_sum, grad);
  void* stream = current_cuda_stream(grad.get_device_index());
  in_its_type_on_gpu(grad, "grad", [&](auto zero) {
    using Scalar = decltype(zero);
    const auto read = describe<Scalar>(indices, grad, weight_sum.size(0), padding_idx);
    const cuda::EmbeddingByEntry<Scalar> job{read, nullptr, factors, sums};
    check_launched(cuda::launch_embedding_by_entry(job, stream), "recomputed_embedding_sum");
  });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "example_embedding_grad(Tensor indices, Tensor grad, Tensor(a!) weight, int padding_idx, "
      "bool accumulate) -> ()");
  library.def(
      "example_embedding_norms(Tensor indices, Tensor grad, int entries, int padding_idx) "
      "-> Tensor");
  library.def(
      "recomputed_embedding_sum(Tensor indices, Tensor grad, Tensor scales, Tensor(a!) weight_sum, "
      "int padding_idx) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("example_embedding_grad", TORCH_BOX(&example_embedding_grad_cpu));
  library.impl("example_embedding_norms", TORCH_BOX(&example_embedding_norms_cpu));
  library.impl("recomputed_embedding_sum", TORCH_BOX(&recomputed_embedding_sum_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("example_embedding_grad", TORCH_BOX(&example_embedding_grad_cuda));
  library.impl("example_embedding_norms", TORCH_BOX(&example_embedding_norms_cuda));
  library.impl("recomputed_embedding_sum", TORCH_BOX(&recomputed_embedding_sum_cuda));
}
#endif

}  // namespace privimage
