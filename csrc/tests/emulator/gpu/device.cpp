// A CUDA device for a PyTorch that has none: its memory is the host's, our operators are those of
// a GPU, on the emulator, and all others compute on the CPU.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tests/emulator/machine.h"

namespace privimage::emulator {
namespace {

const c10::Device kGpu{c10::DeviceType::CUDA, 0};
const c10::DispatchKeySet kKeys{c10::DispatchKey::CUDA};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kGpu; }
  c10::Device getDevice() const override { return kGpu; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kGpu);
  }
  c10::Stream getNewStream(c10::Device, int) const override { return getStream(kGpu); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kGpu); }
};

// A generator of the device's; the CPU takes it for one of its own while it draws.
struct Generator final : at::CPUGeneratorImpl {
  Generator() { lies_on(kGpu); }
  void lies_on(c10::Device device) { device_ = device; }
};

// What PyTorch asks of CUDA itself; registered under the name that it looks for.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>();
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

// What is allocated; tensors may outlive whatever else is static.
struct Registry {
  std::mutex mutex;
  Pieces pieces;
};

Registry& registry() {
  static auto* const only = new Registry;
  return *only;
}

void release(void* data) {
  const std::lock_guard lock(registry().mutex);
  registry().pieces.erase(reinterpret_cast<uintptr_t>(data));
  std::free(data);
}

// Memory that nobody has written holds NaN, in all of the floating-point types.
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(512, (bytes / 512 + 1) * 512);
    std::memset(data, 0xff, bytes);
    const std::lock_guard lock(registry().mutex);
    const auto begin = reinterpret_cast<uintptr_t>(data);
    registry().pieces[begin] = begin + bytes;
    return {data, data, &release, kGpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Memory memory;

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, kKeys,
                                   c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), &memory, kKeys,
                                           c10::dtype_or_default(type));
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), start);
}

// An argument on the device, and the tensor in which the CPU sees the same memory.
struct Twin {
  at::Tensor device;
  at::Tensor host;
};

void copy(const at::Tensor& host, const at::Tensor& device) {
  const auto* from = static_cast<const char*>(host.storage().data());
  std::memcpy(device.storage().mutable_data(),
              from + host.storage_offset() * int64_t(host.element_size()),
              device.storage().nbytes());
}

at::Tensor copied(const at::Tensor& host) {
  const at::Tensor device = at::detail::empty_strided_generic(host.sizes(), host.strides(), &memory,
                                                              kKeys, host.scalar_type());
  copy(host, device);
  return device;
}

// A call of an operator of PyTorch's that the CPU takes over.
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (Generator* generator : generators_) generator->lies_on(kGpu);
  }

  // Whether a GPU would have refused what was given: tensors here and there. Numbers may be
  // anywhere, and so may the indices of what is there.
  bool is_mixed() const { return has_host_ && !twins_.empty(); }
  // Whether something goes from here to there, or back.
  bool crosses() const { return (has_host_ || has_number_) && !twins_.empty(); }

  c10::IValue to_host(const c10::IValue& value) {
    if (value.isTensor()) return host_of(value.toTensor());
    if (value.isTensorList()) {
      std::vector<at::Tensor> hosts;
      for (const at::Tensor& tensor : value.toTensorVector()) hosts.push_back(host_of(tensor));
      return hosts;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> hosts;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        const bool had_host = has_host_;
        hosts.push_back(tensor ? std::optional(host_of(*tensor)) : std::nullopt);
        has_host_ = had_host;
      }
      return hosts;
    }
    if (value.isGenerator()) {
      auto* generator = dynamic_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl());
      has_host_ = has_host_ || !generator;
      if (generator) generators_.push_back(generator);
      if (generator) generator->lies_on(c10::kCPU);
    }
    if (!value.isDevice()) return value;
    makes_on_device_ = makes_on_device_ || value.toDevice().is_cuda();
    return c10::Device(c10::kCPU);
  }

  c10::IValue to_device(const c10::IValue& value) const {
    if (value.isTensor()) return device_of(value.toTensor());
    if (!value.isTensorList()) return value;
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& host : value.toTensorVector()) tensors.push_back(device_of(host));
    return tensors;
  }

 private:
  at::Tensor host_of(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      (tensor.dim() > 0 ? has_host_ : has_number_) = true;
      return tensor;
    }
    // An operator may give it another size, and then moves it to memory of its own.
    const c10::Storage& storage = tensor.storage();
    const c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(),
                            c10::DataPtr(storage.mutable_data(), c10::kCPU),
                            c10::GetAllocator(c10::kCPU), /*resizable=*/true);
    const at::Tensor host =
        at::empty({0}, tensor.options().device(c10::kCPU).requires_grad(false))
            .set_(same, tensor.storage_offset(), tensor.sizes(), tensor.strides());
    twins_.push_back({tensor, host});
    return host;
  }

  // The argument itself, a view of one, or new.
  at::Tensor device_of(const at::Tensor& host) const {
    if (!host.defined() || !host.is_cpu()) return host;
    for (const Twin& twin : twins_) {
      if (twin.host.is_same(host)) return as_large(twin);
    }
    for (const Twin& twin : twins_) {
      if (host.numel() > 0 && host.storage().data() == twin.host.storage().data()) {
        return at::native::as_strided_tensorimpl(twin.device, host.sizes(), host.strides(),
                                                 host.storage_offset());
      }
    }
    return twins_.empty() && !makes_on_device_ ? host : copied(host);
  }

  // The argument, in the size that the operator has given it.
  static at::Tensor as_large(const Twin& twin) {
    const at::Tensor &device = twin.device, &host = twin.host;
    if (host.storage().data() == device.storage().data() && host.sizes() == device.sizes() &&
        host.strides() == device.strides()) {
      return device;
    }
    const at::Tensor fresh = copied(host);
    at::TensorImpl* changed = device.unsafeGetTensorImpl();
    changed->set_storage_keep_dtype(fresh.storage());
    changed->set_sizes_and_strides(fresh.sizes(), fresh.strides(), 0);
    return device;
  }

  std::vector<Twin> twins_;
  std::vector<Generator*> generators_;
  bool makes_on_device_ = false;
  bool has_host_ = false;
  bool has_number_ = false;
};

// As torch.cuda.set_sync_debug_mode("error") has it.
std::atomic<bool> must_not_wait{false};

bool waits(const std::string& name, const Call& call, const torch::jit::Stack& arguments) {
  if (name == "aten::copy_") return call.crosses() && !arguments.back().toBool();
  return name == "aten::_local_scalar_dense" || name == "aten::nonzero";
}

bool moves_data(const std::string& name) {
  return name == "aten::copy_" || name == "aten::_to_copy" || name == "aten::_pack_padded_sequence";
}

void on_the_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Call call;
  const size_t first = stack->size() - op.schema().arguments().size();
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.to_host((*stack)[i]);
  const std::string& name = op.schema().name();
  TORCH_CHECK(!call.is_mixed() || moves_data(name), name,
              ": expected all tensors to be on the same device, but found some on the CPU");
  TORCH_CHECK(!must_not_wait || !waits(name, call, *stack), name, " waits for the GPU");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.to_device((*stack)[i]);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void privimage_must_not_wait(bool must_not) {
  must_not_wait = must_not;
}

Pieces allocated() {
  const std::lock_guard lock(registry().mutex);
  return registry().pieces;
}

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", as_strided);
  // What PyTorch would compose for a GPU, or look up in a table of the device's.
  for (const char* name :
       {"copy_", "_local_scalar_dense", "convolution", "convolution_backward", "view"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
  }
}

}  // namespace privimage::emulator
