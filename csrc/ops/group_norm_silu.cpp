// torch.ops.privimage.group_norm_silu and its backward: checks, allocates, dispatches.
#include "cpu/group_norm_silu.h"

#include <optional>
#include <tuple>

#include "ops/op.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/group_norm_silu.h"
#endif

namespace privimage {
namespace {

// Values that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 1 << 14;

GroupNormShape shape_of(const Tensor& x, int64_t examples, int64_t groups, bool silu) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: expected [rows, channels, ...], got ", sizes_of(x));
  const int64_t rows = x.size(0), channels = x.size(1);
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "groups: ", groups, " do not fit ",
                  channels, " channels");
  STD_TORCH_CHECK(examples == 0 ? rows == 0 : rows % examples == 0, "x: ", rows,
                  " rows do not fit ", examples, " examples");
  int64_t pixels = 1;
  for (int64_t dim = 2; dim < x.dim(); ++dim) pixels *= x.size(dim);
  if (!x.is_contiguous()) {
    // Of a dimension of size 1 the stride may be anything.
    const auto has = [&x](int64_t dim, int64_t stride) {
      return x.size(dim) <= 1 || x.stride(dim) == stride;
    };
    STD_TORCH_CHECK(x.dim() == 4 && has(1, 1) && has(3, channels) && has(2, channels * x.size(3)) &&
                        has(0, channels * pixels),
                    "x: expected a contiguous or channels-last tensor, got strides ", steps_of(x));
  }
  // Of one pixel both layouts are the same; vectors of channels are faster.
  const bool channels_last = pixels == 1 || !x.is_contiguous();
  return {examples, examples == 0 ? 1 : rows / examples, channels, pixels, groups, channels_last,
          silu};
}

void check_vector(const std::optional<Tensor>& tensor, const Tensor& x, const std::string& name) {
  if (!tensor) return;
  check_beside(*tensor, wide_type(x), x, name);
  check_shape(*tensor, name, {x.size(1)});
  check_contiguous(*tensor, name);
}

void check_rows(const std::optional<Tensor>& tensor, const Tensor& x, int64_t examples,
                const std::string& name) {
  if (!tensor) return;
  check_kept_beside(*tensor, x, name);
  check_shape(*tensor, name, {examples, x.size(1)});
  STD_TORCH_CHECK(tensor->stride(1) == 1 && (examples <= 1 || tensor->stride(0) >= x.size(1)), name,
                  ": expected rows in one piece that do not overlap, got strides ",
                  steps_of(*tensor));
}

template <typename T>
const T* read(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <typename T>
T* write(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

int64_t grain(const GroupNormShape& shape) {
  return kGrain / (shape.draws * shape.channels * shape.pixels + 1) + 1;
}

struct Forward {
  GroupNormShape shape;
  const Tensor& x;
  const std::optional<Tensor>&weight, &bias;
  double eps;
  Tensor y;
  Tensor moments;  // [2, rows, groups]
};

Forward allocate(const Tensor& x, const std::optional<Tensor>& weight,
                 const std::optional<Tensor>& bias, int64_t groups, double eps, bool silu) {
  const GroupNormShape shape = shape_of(x, x.size(0), groups, silu);
  check_vector(weight, x, "weight");
  check_vector(bias, x, "bias");
  return {shape,
          x,
          weight,
          bias,
          eps,
          torch::stable::empty_like(x),
          torch::stable::new_empty(x, {2, x.size(0), groups}, wide_type(x))};
}

template <typename Scalar>
GroupNormSilu<Scalar> describe(const Forward& given) {
  using Real = Wide<Scalar>;
  Real* moments = write<Real>(given.moments);
  return {given.shape,
          read<Scalar>(given.x),
          read<Real>(given.weight),
          read<Real>(given.bias),
          write<Scalar>(given.y),
          moments,
          moments + given.x.size(0) * given.shape.groups,
          given.eps};
}

std::tuple<Tensor, Tensor> group_norm_silu_cpu(const Tensor x, const std::optional<Tensor> weight,
                                               const std::optional<Tensor> bias, int64_t groups,
                                               double eps, bool silu) {
  const Forward given = allocate(x, weight, bias, groups, eps, silu);
  in_its_type(x, "x", [&](auto zero) {
    const auto job = describe<decltype(zero)>(given);
    const int64_t examples = given.shape.examples;
    torch::stable::parallel_for(0, examples, grain(given.shape), [&](int64_t begin, int64_t end) {
      cpu::group_norm_silu(job, begin, end);
    });
  });
  return {given.y, given.moments};
}

struct Backward {
  GroupNormShape shape;
  const Tensor &grad, &x, &moments;
  const std::optional<Tensor>&weight, &bias, &grad_weight, &grad_bias;
  bool accumulate;
  Tensor grad_x;
};

Backward allocate(const Tensor& grad, const Tensor& x, const Tensor& moments,
                  const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& grad_weight, const std::optional<Tensor>& grad_bias,
                  bool silu, bool accumulate) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: expected [rows, channels, ...], got ", sizes_of(x));
  check_shape(moments, "moments", {2, x.size(0), kAnySize});
  check_contiguous(moments, "moments");
  check_beside(moments, wide_type(x), x, "moments");
  const int64_t examples = grad_weight ? grad_weight->size(0)
                           : grad_bias ? grad_bias->size(0)
                                       : x.size(0);
  const GroupNormShape shape = shape_of(x, examples, moments.size(2), silu);
  check_beside(grad, x.scalar_type(), x, "grad");
  STD_TORCH_CHECK(grad.dim() == x.dim(), "grad: expected ", sizes_of(x), " as x, got ",
                  sizes_of(grad));
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    STD_TORCH_CHECK(grad.size(dim) == x.size(dim), "grad: expected ", sizes_of(x), " as x, got ",
                    sizes_of(grad));
    STD_TORCH_CHECK(grad.size(dim) <= 1 || grad.stride(dim) == x.stride(dim),
                    "grad: expected the strides ", steps_of(x), " of x, got ", steps_of(grad));
  }
  check_vector(weight, x, "weight");
  check_vector(bias, x, "bias");
  check_rows(grad_weight, x, examples, "grad_weight");
  check_rows(grad_bias, x, examples, "grad_bias");
  return {shape, grad,        x,         moments,    weight,
          bias,  grad_weight, grad_bias, accumulate, torch::stable::empty_like(x)};
}

template <typename Scalar>
GroupNormSiluBackward<Scalar> describe(const Backward& given) {
  using Real = Wide<Scalar>;
  const Real* moments = read<Real>(given.moments);
  return {given.shape,
          read<Scalar>(given.grad),
          read<Scalar>(given.x),
          moments,
          moments + given.x.size(0) * given.shape.groups,
          read<Real>(given.weight),
          read<Real>(given.bias),
          write<Scalar>(given.grad_x),
          write<Real>(given.grad_weight),
          given.grad_weight ? given.grad_weight->stride(0) : 0,
          write<Real>(given.grad_bias),
          given.grad_bias ? given.grad_bias->stride(0) : 0,
          given.accumulate};
}

Tensor group_norm_silu_backward_cpu(const Tensor grad, const Tensor x, const Tensor moments,
                                    const std::optional<Tensor> weight,
                                    const std::optional<Tensor> bias,
                                    const std::optional<Tensor> grad_weight,
                                    const std::optional<Tensor> grad_bias, bool silu,
                                    bool accumulate) {
  const Backward given =
      allocate(grad, x, moments, weight, bias, grad_weight, grad_bias, silu, accumulate);
  in_its_type(x, "x", [&](auto zero) {
    const auto job = describe<decltype(zero)>(given);
    const int64_t examples = given.shape.examples;
    torch::stable::parallel_for(0, examples, grain(given.shape), [&](int64_t begin, int64_t end) {
      cpu::group_norm_silu_backward(job, begin, end);
    });
  });
  return given.grad_x;
}

#ifdef PRIVIMAGE_CUDA
std::tuple<Tensor, Tensor> group_norm_silu_cuda(const Tensor x, const std::optional<Tensor> weight,
                                                const std::optional<Tensor> bias, int64_t groups,
                                                double eps, bool silu) {
  const DeviceGuard guard(gpu_of(x, "x"));
  const Forward given = allocate(x, weight, bias, groups, eps, silu);
  void* stream = current_cuda_stream(x.get_device_index());
  in_its_type_on_gpu(x, "x", [&](auto zero) {
    const int error = cuda::launch_group_norm_silu(describe<decltype(zero)>(given), stream);
    check_launched(error, "group_norm_silu");
  });
  return {given.y, given.moments};
}

Tensor group_norm_silu_backward_cuda(const Tensor grad, const Tensor x, const Tensor moments,
                                     const std::optional<Tensor> weight,
                                     const std::optional<Tensor> bias,
                                     const std::optional<Tensor> grad_weight,
                                     const std::optional<Tensor> grad_bias, bool silu,
                                     bool accumulate) {
  const DeviceGuard guard(gpu_of(x, "x"));
  const Backward given =
      allocate(grad, x, moments, weight, bias, grad_weight, grad_bias, silu, accumulate);
  const Tensor row_sums =
      torch::stable::new_empty(x, {x.size(0), 2, given.shape.channels}, wide_type(x));
  void* stream = current_cuda_stream(x.get_device_index());
  in_its_type_on_gpu(x, "x", [&](auto zero) {
    using Scalar = decltype(zero);
    using Real = Wide<Scalar>;
    const auto rows = [&](const std::optional<Tensor>& of) {
      return of ? grad_rows<Real>(*of, accumulate) : GradRows<Real>{};
    };
    const int error = cuda::launch_group_norm_silu_backward(describe<Scalar>(given),
                                                            {rows(grad_weight), rows(grad_bias)},
                                                            write<Real>(row_sums), stream);
    check_launched(error, "group_norm_silu_backward");
  });
  return given.grad_x;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "group_norm_silu(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, bool silu) "
      "-> (Tensor, Tensor)");
  library.def(
      "group_norm_silu_backward(Tensor grad, Tensor x, Tensor moments, Tensor? weight, "
      "Tensor? bias, Tensor(a!)? grad_weight, Tensor(b!)? grad_bias, bool silu, bool accumulate) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("group_norm_silu", TORCH_BOX(&group_norm_silu_cpu));
  library.impl("group_norm_silu_backward", TORCH_BOX(&group_norm_silu_backward_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("group_norm_silu", TORCH_BOX(&group_norm_silu_cuda));
  library.impl("group_norm_silu_backward", TORCH_BOX(&group_norm_silu_backward_cuda));
}
#endif

}  // namespace privimage
