// CUDA's runtime for the objects that nvcc makes: it launches what translate.py has made of a
// kernel's PTX, in the emulator.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "kernels/launch.h"
#include "tests/emulator/ptx/instructions.h"

namespace privimage::emulator {

Pieces allocated();  // on the device

namespace ptx {
namespace {

struct Translated {
  void (*run)(B64);
  unsigned threads;
};
std::map<std::string, Translated>& translated() {
  static std::map<std::string, Translated> all;
  return all;
}

// The kernels of nvcc's objects, by the function of the host that stands for each.
struct Known {
  std::string name;
  size_t shared_bytes = 48 * 1024;
};
std::map<const void*, Known>& known() {
  static std::map<const void*, Known> all;
  return all;
}
int last_error = 0;
constexpr int kInvalidValue = 1;

}  // namespace

Kernel::Kernel(const char* name, void (*run)(B64), unsigned threads) {
  translated()[name] = {run, threads};
}

}  // namespace ptx
}  // namespace privimage::emulator

using namespace privimage::emulator;

struct dim3 {
  unsigned x, y, z;
};

extern "C" {

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, dim3*, dim3*, int*) {
  ptx::known()[function] = {name};
}
// What nvcc's stubs of kernels call, which nobody calls.
int __cudaGetKernel(void**, const void*) { return ptx::kInvalidValue; }
int __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return ptx::kInvalidValue; }
int __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { return ptx::kInvalidValue; }

int cudaGetDevice(int* device) { return *device = 0; }
int cudaDeviceGetAttribute(int* value, int, int) {
  *value = privimage::cuda::kMostSharedBytes;
  return 0;
}
int cudaGetLastError() { return std::exchange(ptx::last_error, 0); }
int cudaFuncSetAttribute(const void* function, int, int bytes) {
  ptx::known().at(function).shared_bytes = static_cast<size_t>(bytes);
  return 0;
}
int cudaLaunchKernel(const void* function, dim3 blocks, dim3 threads, void** arguments,
                     size_t shared_bytes, void*) {
  static uint64_t launches = 0;
  const ptx::Known& asked = ptx::known().at(function);
  const ptx::Translated kernel = ptx::translated().at(asked.name);
  if (shared_bytes > asked.shared_bytes || threads.x > kernel.threads) {
    return ptx::last_error = ptx::kInvalidValue;
  }
  const Pieces memory = allocated();
  run({blocks.x, blocks.y, static_cast<int>(threads.x), static_cast<int64_t>(shared_bytes),
       ++launches, &memory},
      [&](const privimage::cuda::Block&) {
        kernel.run(reinterpret_cast<uintptr_t>(arguments[0]));
      });
  return 0;
}
}
