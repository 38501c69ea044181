// torch.ops.privimage.gram_sums: checks, allocates, dispatches. On the CPU, where the plan can
// choose it; on a GPU privimage/ops/_library.py puts the formula itself in its place.
#include "cpu/gram_sums.h"

#include "ops/op.h"

namespace privimage {
namespace {

// Multiplications that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 17;

void check(const Tensor& x, const Tensor& grad) {
  check_shape(x, "x", {kAnySize, kAnySize, kAnySize});
  check_shape(grad, "grad", {x.size(0), x.size(1), kAnySize});
  check_contiguous(x, "x");
  check_contiguous(grad, "grad");
  check_beside(grad, x.scalar_type(), x, "grad");
}

template <typename Scalar>
void run(const Tensor& x, const Tensor& grad, bool with_bias, const Tensor& sums) {
  const cpu::GramSums<Scalar> job{static_cast<const Scalar*>(x.const_data_ptr()),
                                  static_cast<const Scalar*>(grad.const_data_ptr()),
                                  static_cast<double*>(sums.mutable_data_ptr()),
                                  x.size(0),
                                  x.size(1),
                                  x.size(2),
                                  grad.size(2),
                                  with_bias};
  const int64_t work = job.positions * job.positions * (job.inputs + job.outputs) / 2;
  torch::stable::parallel_for(0, job.examples, kGrain / (work + 1) + 1,
                              [&](int64_t begin, int64_t end) { cpu::gram_sums(job, begin, end); });
}

Tensor gram_sums_cpu(const Tensor x, const Tensor grad, bool with_bias) {
  check(x, grad);
  Tensor sums = torch::stable::new_empty(x, {4, x.size(0)}, ScalarType::Double);
  in_its_type(x, "x", [&](auto zero) { run<decltype(zero)>(x, grad, with_bias, sums); });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def("gram_sums(Tensor x, Tensor grad, bool with_bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("gram_sums", TORCH_BOX(&gram_sums_cpu));
}

}  // namespace privimage
