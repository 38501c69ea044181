// torch.ops.privimage.private_update: checks, dispatches; everything it writes is given to it.
#include "cpu/private_update.h"

#include <optional>
#include <string>

#include "ops/check.h"
#include "ops/key.h"
#include "ops/op.h"

#ifdef PRIVIMAGE_CUDA
#include "kernels/private_update.h"
#endif

namespace privimage {
namespace {

// Noise tiles that a thread must have to do to be worth waking it.
constexpr int64_t kGrain = 64;

void check_vector(const Tensor& tensor, ScalarType type, int64_t count, const Tensor& beside,
                  const std::string& name) {
  check_type(tensor, type, name);
  check_shape(tensor, name, {count});
  check_contiguous(tensor, name);
  check_device(tensor, beside, name);
}

float* optional_floats(const std::optional<Tensor>& tensor, const Tensor& parameters,
                       const std::string& name) {
  if (!tensor.has_value()) return nullptr;
  check_vector(*tensor, ScalarType::Float, parameters.numel(), parameters, name);
  return static_cast<float*>(tensor->mutable_data_ptr());
}

PrivateUpdate describe(const Tensor& clipped_sum, const Tensor& step, int64_t first_index,
                       const Tensor& parameters, const Tensor& momentum,
                       const std::optional<Tensor>& second_moment,
                       const std::optional<Tensor>& average, const UpdateRule& rule) {
  const int64_t count = parameters.numel();
  check_vector(parameters, ScalarType::Float, count, parameters, "parameters");
  check_vector(clipped_sum, ScalarType::Long, count, parameters, "clipped_sum");
  check_vector(momentum, ScalarType::Float, count, parameters, "momentum");
  check_vector(step, ScalarType::Long, 1, parameters, "step");
  STD_TORCH_CHECK(first_index >= 0, "first_index: expected no negative number, got ", first_index);
  STD_TORCH_CHECK(rule.noise_std >= 0.0 && rule.noise_std <= 0x1p58,
                  "noise_std: expected a number in [0, 2^58], got ", rule.noise_std);
  return {static_cast<const int64_t*>(clipped_sum.const_data_ptr()),
          first_index,
          count,
          static_cast<float*>(parameters.mutable_data_ptr()),
          static_cast<float*>(momentum.mutable_data_ptr()),
          optional_floats(second_moment, parameters, "second_moment"),
          optional_floats(average, parameters, "average"),
          rule};
}

const double* read_numbers(const Tensor& numbers, const Tensor& parameters) {
  check_vector(numbers, ScalarType::Double, kStepNumbers, parameters, "numbers");
  return static_cast<const double*>(numbers.const_data_ptr());
}

void private_update_cpu(const Tensor& clipped_sum, const Tensor& key, const Tensor& step,
                        int64_t first_index, const Tensor& parameters, const Tensor& momentum,
                        const std::optional<Tensor>& second_moment,
                        const std::optional<Tensor>& average, const Tensor& numbers,
                        double noise_std, double scale) {
  check_runs_on(DeviceType::CPU, parameters, "parameters");
  auto* counter = static_cast<int64_t*>(step.mutable_data_ptr());
  cpu::UpdateOnCpu job{
      describe(clipped_sum, step, first_index, parameters, momentum, second_moment, average,
               read_rule(noise_std, scale, read_numbers(numbers, parameters))),
      {{}, static_cast<uint64_t>(*counter)}};
  read_key(key, job.stream.key);
  const auto set = cpu::chosen_instruction_set();
  torch::stable::parallel_for(
      cpu::first_tile(first_index), cpu::end_tile(first_index, job.update.count), kGrain,
      [&](int64_t begin, int64_t end) { cpu::private_update(set, job, begin, end); });
  ++*counter;
}

#ifdef PRIVIMAGE_CUDA
void private_update_cuda(const Tensor& clipped_sum, const Tensor& key, const Tensor& step,
                         int64_t first_index, const Tensor& parameters, const Tensor& momentum,
                         const std::optional<Tensor>& second_moment,
                         const std::optional<Tensor>& average, const Tensor& numbers,
                         double noise_std, double scale) {
  const DeviceGuard guard(gpu_of(parameters, "parameters"));
  cuda::UpdateOnGpu job{
      describe(clipped_sum, step, first_index, parameters, momentum, second_moment, average,
               {noise_std, scale, 0, 0, 0, 0, 0, 0, 0, 0}),
      {},
      static_cast<int64_t*>(step.mutable_data_ptr()),
      read_numbers(numbers, parameters)};
  read_key(key, job.key);
  void* stream = current_cuda_stream(parameters.get_device_index());
  const int error = cuda::launch_private_update(job, stream);
  check_launched(error, "private_update");
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def(
      "private_update(Tensor clipped_sum, Tensor key, Tensor(a!) step, int first_index, "
      "Tensor(b!) parameters, Tensor(c!) momentum, Tensor(d!)? second_moment, "
      "Tensor(e!)? average, Tensor numbers, float noise_std, float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("private_update", TORCH_BOX(&private_update_cpu));
}

#ifdef PRIVIMAGE_CUDA
STABLE_TORCH_LIBRARY_IMPL(privimage, CUDA, library) {
  library.impl("private_update", TORCH_BOX(&private_update_cuda));
}
#endif

}  // namespace privimage
