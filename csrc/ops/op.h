// What the op files share: tensors on the stable ABI, sentences about wrong ones, and the template
// of a kernel that fits a tensor's type.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "ops/check.h"
#include "shared/bfloat16.h"

#ifdef PRIVIMAGE_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "kernels/grad_rows.h"
#include "kernels/launch.h"
#include "ops/cuda_stream.h"
#endif

namespace privimage {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Run>
void in_a_wide_type(const Tensor& tensor, const char* name, Run run) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) {
    run(0.0f);
  } else if (type == ScalarType::Double) {
    run(0.0);
  } else {
    refuse_type(tensor, name);
  }
}

// Calls run with a zero of the type of `tensor`, which an op goes by, if it is on the CPU.
template <typename Run>
void in_its_type(const Tensor& tensor, const char* name, Run run) {
  check_runs_on(DeviceType::CPU, tensor, name);
  in_a_wide_type(tensor, name, run);
}

#ifdef PRIVIMAGE_CUDA
using torch::stable::accelerator::DeviceGuard;

// The number of the GPU on which the tensor is that an op goes by.
inline int32_t gpu_of(const Tensor& tensor, const char* name) {
  check_runs_on(DeviceType::CUDA, tensor, name);
  return tensor.get_device_index();
}

// As in_its_type, with bfloat16, which the CPU's kernels do not have.
template <typename Run>
void in_its_type_on_gpu(const Tensor& tensor, const char* name, Run run) {
  if (tensor.scalar_type() == ScalarType::BFloat16) {
    run(Bfloat16{});
  } else {
    in_a_wide_type(tensor, name, run);
  }
}

// The rows [examples, ...] of a tensor, as `check_kept_beside` lets them through.
template <typename Real>
GradRows<Real> grad_rows(const Tensor& rows, bool accumulate) {
  void* data = rows.mutable_data_ptr();
  if (rows.scalar_type() == ScalarType::BFloat16) {
    return {nullptr, static_cast<Bfloat16*>(data), rows.stride(0), accumulate};
  }
  return {static_cast<Real*>(data), nullptr, rows.stride(0), accumulate};
}

inline void check_launched(int error, const char* name) {
  STD_TORCH_CHECK(error != cuda::kTooLarge, name,
                  ": needs more blocks, or more shared memory, than this GPU has");
  STD_TORCH_CHECK(error != cuda::kNoImage, name,
                  ": this GPU is older than compute capability 8.0, the least that PrivImage has "
                  "kernels for; built with PRIVIMAGE_BUILD=cpu it leaves GPUs to PyTorch");
  STD_TORCH_CHECK(error == 0, name, ": CUDA error ", error);
}
#endif

}  // namespace privimage
