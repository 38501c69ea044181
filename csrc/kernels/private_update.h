// Launches the last pass of a private step on a GPU; the bridge between the .cu file and the op.
#pragma once

#include <cstdint>

#include "shared/private_update.h"

namespace privimage::cuda {

// A captured graph keeps its arguments. So what differs from step to step is in device memory: the
// step, or every replay would draw the same noise; and the numbers of the optimiser, or all would
// have the first one's learning rate and bias correction.
struct UpdateOnGpu {
  PrivateUpdate update;  // of its rule noise_std and scale alone are read
  uint32_t key[8];
  int64_t* step;
  const double* numbers;  // [kStepNumbers]
};

// Queues the pass, and then the addition of 1 to the step, on `stream` (a cudaStream_t); returns
// the CUDA error code, 0 for none. All pointers of `job` are device memory. Allocates, synchronises
// and throws nothing.
int launch_private_update(const UpdateOnGpu& job, void* stream);

}  // namespace privimage::cuda
