// Memory that is asked for long before it is needed, since it is slow to come.
#pragma once

#include <cstdint>

namespace privimage::cpu {

// Asks for the memory of `count` values, to be written to.
template <typename Scalar>
inline void ask_for(const Scalar* values, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(Scalar);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(values + i, 1);
  asm volatile("");  // GCC removes calls of functions that do nothing else.
}

}  // namespace privimage::cpu
