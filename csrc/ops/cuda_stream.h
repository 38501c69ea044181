// The stream that PyTorch queues its own kernels on.
//
// The function lives in libtorch_cuda, which a CPU build of PyTorch does not have. Looking it up in
// the already loaded library lets one file load on both.
#pragma once

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace privimage {

inline void* current_cuda_stream(int32_t device_index) {
  using Function = int32_t (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  STD_TORCH_CHECK(function != nullptr, "libtorch_cuda is not loaded: this PyTorch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device_index, &stream) == 0, "no CUDA stream for device ", device_index);
  return stream;
}

}  // namespace privimage
