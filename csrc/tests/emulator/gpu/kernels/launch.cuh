// In place of kernels/launch.cuh: a launch runs in the emulator, and has ended when it returns.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "kernels/launch.h"
#include "tests/emulator/block.h"
#include "tests/emulator/machine.h"

namespace privimage::emulator {

// What is allocated on the device.
Pieces allocated();

}  // namespace privimage::emulator

namespace privimage::cuda {

inline int64_t most_shared_bytes() { return kMostSharedBytes; }

template <typename Job>
int launch(void (*kernel)(Job), const LaunchShape& shape, const Job& job, void*) {
  static std::atomic<uint64_t> launches{0};
  if (shape.empty()) return 0;
  if (!shape.possible()) return kTooLarge;
  const emulator::Pieces memory = emulator::allocated();
  emulator::run(
      {shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, ++launches, &memory},
      [&](const Block&) { kernel(job); });
  return 0;
}

}  // namespace privimage::cuda
