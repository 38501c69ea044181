// Launches the last pass of a private step on a GPU; the bridge between the .cu file and the op.
#pragma once

#include <cstdint>

#include "shared/private_update.h"

namespace privimage::cuda {

struct UpdateOnGpu {
  PrivateUpdate update;
  uint32_t key[8];
  int64_t* step;  // in device memory, so that a captured graph draws fresh noise in every replay
};

// Queues the pass, and then the addition of 1 to the step, on `stream` (a cudaStream_t); returns
// the CUDA error code, 0 for none. All pointers of `job` are device memory. Allocates, synchronises
// and throws nothing.
//
// A captured graph keeps the numbers of `update.rule` as they were: whoever captures Adam's step
// freezes its bias correction and its learning rate.
int launch_private_update(const UpdateOnGpu& job, void* stream);

}  // namespace privimage::cuda
