// The Block of kernels/block.h on a Machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/vector.h"
#include "shared/bfloat16.h"
#include "tests/emulator/machine.h"

#define PRIVIMAGE_DEVICE inline

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

  T load(int index) const {
    T value;
    std::memcpy(&value, machine_->read(thread_, place(index, 1), sizeof(T)), sizeof(T));
    return value;
  }
  template <int kCount>
  Vector<T, kCount> load_vector(int index) const {
    Vector<T, kCount> values;
    std::memcpy(&values, machine_->read(thread_, place(index, kCount), sizeof values),
                sizeof values);
    return values;
  }
  void store(int index, T value) const {
    machine_->write(thread_, place(index, 1), &value, sizeof(T));
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
  void copy16(const Shared<T>& to, int index, const T* from, int bytes) const {
    machine_->copy(thread_, to.place(index, 16 / sizeof(T)), from, bytes);
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
  void add(int64_t* to, int64_t value) const { *to += value; }
  void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
    emulator::MultiplyArguments arguments{sum, a, {b0, b1}};
    machine_->meet(emulator::kMultiplyAddTf32, &arguments);
  }

 private:
  emulator::Machine* machine_;
  int thread_;
};

}  // namespace privimage::cuda
