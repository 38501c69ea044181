// In place of ops/cuda_stream.h: the emulator has no streams.
#pragma once

#include <cstdint>

namespace privimage {

inline void* current_cuda_stream(int32_t) { return nullptr; }

}  // namespace privimage
