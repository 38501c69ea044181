// The launcher of the tiled weight gradient for one way to multiply; a .cu file each has one.
#pragma once

#include "kernels/conv_weight_grad.cuh"
#include "kernels/launch.cuh"

namespace privimage::cuda {

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    conv_weight_grad_kernel(ConvWeightGrad<typename Tile::Scalar> job) {
  conv_weight_grad<Tile>(Block{}, job);
}

template <typename Math>
int64_t conv_slots_of(const ConvWeightGrad<typename Math::Scalar>& job) {
  return choose_tile<Math>(job.geometry, [&](auto tile) {
    return conv_launch<decltype(tile)>(job.geometry, job.bias.channels).blocks_y;
  });
}

template <typename Math>
int launch_conv(const ConvWeightGrad<typename Math::Scalar>& job, void* stream) {
  return choose_tile<Math>(job.geometry, [&](auto tile) {
    using Tile = decltype(tile);
    if (!conv_counts_fit<Tile>(job.geometry)) return static_cast<int>(cudaErrorInvalidValue);
    return launch(conv_weight_grad_kernel<Tile>, conv_launch<Tile>(job.geometry, job.bias.channels),
                  job, stream);
  });
}

}  // namespace privimage::cuda
