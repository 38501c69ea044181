// Neighbouring values that one instruction loads or stores.
#pragma once

namespace privimage::cuda {

// Lies in memory at a multiple of its size.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T at[kCount];
};

}  // namespace privimage::cuda
