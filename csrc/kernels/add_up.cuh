// One number from a whole block: sums in double precision, in an order that the sizes alone decide.
#pragma once

#include "kernels/block.h"

namespace privimage::cuda {

// Adds a value of each thread, for the first of them, by a tree in shared memory from byte `at` on.
// `threads` is the block's number, at most 1024. All threads must call it.
PRIVIMAGE_DEVICE double add_threads(const Block& block, double value, int threads, int at) {
  const Shared<double> partial = block.shared<double>(at, threads);
  const int thread = block.thread();
  partial.store(thread, value);
  for (int half = 512; half > 0; half /= 2) {
    block.barrier();
    if (thread < half && thread + half < threads) {
      partial.store(thread, partial.load(thread) + partial.load(thread + half));
    }
  }
  return thread == 0 ? partial.load(0) : 0.0;
}

}  // namespace privimage::cuda
