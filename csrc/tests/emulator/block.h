// The Block of kernels/block.h on a Machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/vector.h"
#include "shared/bfloat16.h"
#include "tests/emulator/machine.h"

#define PRIVIMAGE_DEVICE inline

// The line of the kernel that calls a function with this default argument. In braces it would be
// the function's own.
#define PRIVIMAGE_HERE emulator::Line(__builtin_FILE(), __builtin_LINE())

namespace privimage::emulator {

// What a lane brings to an operation of its warp.
struct ShuffleArguments {
  void* value;
  int64_t bytes;
  int mask;
};
struct LoadArguments {
  uint32_t* to;
  int64_t offset;
};
struct MultiplyArguments {
  float* sum;
  const uint32_t* a;
  uint32_t b[2];
};

extern const Operation kShuffleXor;
extern const Operation kLoadTransposed;
extern const Operation kMultiplyAdd;
extern const Operation kMultiplyAddTf32;

}  // namespace privimage::emulator

namespace privimage::cuda {

template <typename T>
class Shared {
 public:
  Shared(emulator::Machine& machine, int thread, int64_t offset, int count)
      : machine_(&machine), thread_(thread), offset_(offset), count_(count) {}

  T load(int index, emulator::Line line = PRIVIMAGE_HERE) const {
    return load_vector<1>(index, line).at[0];
  }
  template <int kCount>
  Vector<T, kCount> load_vector(int index, emulator::Line line = PRIVIMAGE_HERE) const {
    Vector<T, kCount> values;
    const int64_t at = place(index, kCount);
    std::memcpy(static_cast<void*>(&values), machine_->read(thread_, at, sizeof values),
                sizeof values);
    machine_->note(emulator::Access::kSharedLoad, line, thread_, at, sizeof values);
    return values;
  }
  void store(int index, T value, emulator::Line line = PRIVIMAGE_HERE) const {
    const int64_t at = place(index, 1);
    machine_->write(thread_, at, &value, sizeof value);
    machine_->note(emulator::Access::kSharedStore, line, thread_, at, sizeof value);
  }

  // The byte at which `length` elements from `index` start.
  int64_t place(int index, int length) const {
    if (index < 0 || index + length > count_) {
      machine_->fail("shared memory: elements " + std::to_string(index) + " to " +
                     std::to_string(index + length) + " of " + std::to_string(count_));
    }
    return offset_ + static_cast<int64_t>(index) * static_cast<int64_t>(sizeof(T));
  }

 private:
  emulator::Machine* machine_;
  int thread_;
  int64_t offset_;
  int count_;
};

class Block {
 public:
  Block(emulator::Machine& machine, int thread) : machine_(&machine), thread_(thread) {}
  // As an entry point makes it: of the thread that runs.
  Block() : Block(*emulator::Machine::running, emulator::Machine::running->thread()) {}

  int thread() const { return thread_; }
  int lane() const { return thread_ % 32; }
  int warp() const { return thread_ / 32; }
  int64_t x() const { return machine_->block_x(); }
  int64_t y() const { return machine_->block_y(); }
  void barrier() const { machine_->barrier(); }

  template <typename T>
  T shuffle_xor(T value, int mask) const {
    emulator::ShuffleArguments arguments{&value, sizeof(T), mask};
    machine_->meet(emulator::kShuffleXor, &arguments);
    return value;
  }

  template <typename T>
  Shared<T> shared(int offset, int count) const {
    if (offset < 0 || offset + count * int64_t{sizeof(T)} > machine_->shared_bytes()) {
      machine_->fail("shared memory: a piece ends beyond the " +
                     std::to_string(machine_->shared_bytes()) + " bytes of the block");
    }
    return Shared<T>(*machine_, thread_, offset, count);
  }

  template <typename T>
  void copy16(const Shared<T>& to, int index, const T* from, int bytes,
              emulator::Line line = PRIVIMAGE_HERE) const {
    const int64_t at = to.place(index, 16 / sizeof(T));
    machine_->copy(thread_, at, from, bytes);
    if (bytes > 0) note(emulator::Access::kGlobalLoad, line, from, bytes);
    machine_->note(emulator::Access::kSharedStore, line, thread_, at, 16);
  }
  void commit() const { machine_->commit(thread_); }
  template <int kGroups>
  void wait() const {
    machine_->wait(thread_, kGroups);
  }

  void load_transposed(uint32_t (&to)[4], const Shared<Bfloat16>& from, int index) const {
    emulator::LoadArguments arguments{to, from.place(index, 8)};
    machine_->meet(emulator::kLoadTransposed, &arguments);
  }

  void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
    emulator::MultiplyArguments arguments{sum, a, {b0, b1}};
    machine_->meet(emulator::kMultiplyAdd, &arguments);
  }
  // To the nearest of 11 bits, ties away from zero; a NaN stays one.
  uint32_t to_tf32(float value) const {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffe000u : (bits + 0x1000u) & 0xffffe000u;
  }
  template <typename T>
  T load(const T* from, emulator::Line line = PRIVIMAGE_HERE) const {
    note(emulator::Access::kGlobalLoad, line, from, sizeof(T));
    T value;
    std::memcpy(static_cast<void*>(&value), from, sizeof value);
    return value;
  }
  template <typename T>
  void store(T* to, T value, emulator::Line line = PRIVIMAGE_HERE) const {
    note(emulator::Access::kGlobalStore, line, to, sizeof(T));
    *to = value;
  }
  void add(int64_t* to, int64_t value, emulator::Line line = PRIVIMAGE_HERE) const {
    note(emulator::Access::kGlobalAdd, line, to, sizeof value);
    *to += value;
  }
  void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
    emulator::MultiplyArguments arguments{sum, a, {b0, b1}};
    machine_->meet(emulator::kMultiplyAddTf32, &arguments);
  }

 private:
  // Of global memory.
  template <typename T>
  void note(emulator::Access access, emulator::Line line, const T* at, int64_t bytes) const {
    const auto address = reinterpret_cast<uintptr_t>(at);
    if (address % alignof(T) != 0) {
      machine_->fail("global memory: an address is not aligned to " + std::to_string(alignof(T)));
    }
    machine_->check_global(address, bytes);
    machine_->note(access, line, thread_, address, bytes);
  }

  emulator::Machine* machine_;
  int thread_;
};

}  // namespace privimage::cuda
