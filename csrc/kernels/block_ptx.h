// The Block of kernels/block.h on a GPU: each function is an instruction or two.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/vector.h"
#include "shared/bfloat16.h"

#define PRIVIMAGE_DEVICE __device__ __forceinline__

namespace privimage::cuda {

template <typename T>
class Shared {
 public:
  PRIVIMAGE_DEVICE explicit Shared(T* data) : data_(data) {}
  PRIVIMAGE_DEVICE T load(int index) const { return data_[index]; }
  PRIVIMAGE_DEVICE void store(int index, T value) const { data_[index] = value; }
  template <int kCount>
  PRIVIMAGE_DEVICE Vector<T, kCount> load_vector(int index) const {
    return *reinterpret_cast<const Vector<T, kCount>*>(data_ + index);
  }
  PRIVIMAGE_DEVICE uint32_t address(int index) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data_ + index));
  }

 private:
  T* data_;
};

class Block {
 public:
  PRIVIMAGE_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  PRIVIMAGE_DEVICE int lane() const { return thread() % 32; }
  PRIVIMAGE_DEVICE int warp() const { return thread() / 32; }
  PRIVIMAGE_DEVICE int64_t x() const { return blockIdx.x; }
  PRIVIMAGE_DEVICE int64_t y() const { return blockIdx.y; }
  PRIVIMAGE_DEVICE void barrier() const { __syncthreads(); }

  template <typename T>
  PRIVIMAGE_DEVICE T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }

  // The emulator checks `count`; here it is documentation.
  template <typename T>
  PRIVIMAGE_DEVICE Shared<T> shared(int offset, int /*count*/) const {
    extern __shared__ __align__(128) unsigned char privimage_shared[];
    return Shared<T>(reinterpret_cast<T*>(privimage_shared + offset));
  }

  template <typename T>
  PRIVIMAGE_DEVICE void copy16(const Shared<T>& to, int index, const T* from, int bytes) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address(index)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
  }
  PRIVIMAGE_DEVICE void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int kGroups>
  PRIVIMAGE_DEVICE void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
  }

  PRIVIMAGE_DEVICE void load_transposed(uint32_t (&to)[4], const Shared<Bfloat16>& from,
                                        int index) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from.address(index))
                 : "memory");
  }

  PRIVIMAGE_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  PRIVIMAGE_DEVICE uint32_t to_tf32(float value) const {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
  }
  template <typename T>
  PRIVIMAGE_DEVICE T load(const T* from) const {
    return *from;
  }
  template <typename T>
  PRIVIMAGE_DEVICE void store(T* to, T value) const {
    *to = value;
  }
  PRIVIMAGE_DEVICE void add(int64_t* to, int64_t value) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
  }
  PRIVIMAGE_DEVICE void multiply_add_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

}  // namespace privimage::cuda
