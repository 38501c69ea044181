// Global memory for emulated kernels: pages that nobody may touch lie before and behind it, so
// that a kernel which reads or writes outside of it crashes at once.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/check.h"

namespace privimage::emulator {

// Starts poisoned: every byte 0xff, NaN in every float type.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    // The end lies as near to the guard as 16-byte alignment of the start allows.
    const int64_t bytes = (count * int64_t{sizeof(T)} + 15) / 16 * 16;
    const int64_t inside = (bytes + page - 1) / page * page;
    mapped_ = inside + 2 * page;
    base_ = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base_ != MAP_FAILED);
    uint8_t* first = static_cast<uint8_t*>(base_) + page;
    CHECK(inside == 0 || mprotect(first, inside, PROT_READ | PROT_WRITE) == 0);
    data_ = reinterpret_cast<T*>(first + inside - bytes);
    std::memset(static_cast<void*>(first), 0xff, inside);
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
    if (count_ > 0) std::memcpy(data_, values.data(), count_ * sizeof(T));
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  T operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return count_; }

 private:
  int64_t count_;
  int64_t mapped_;
  void* base_;
  T* data_;
};

}  // namespace privimage::emulator
