// The launcher of the tiled weight gradient for one way to multiply; a .cu file each has one.
#pragma once

#include "kernels/conv_weight_grad.cuh"
#include "kernels/launch.cuh"

namespace privimage::cuda {

// The arguments stay where they are: which layer a block works on is an index into them.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    conv_weight_grad_kernel(const __grid_constant__ ConvWeightGrads<typename Tile::Scalar> jobs) {
  conv_weight_grads<Tile>(Block{}, jobs);
}

template <typename Math>
int64_t conv_slots_of(const ConvWeightGrad<typename Math::Scalar>& job) {
  return choose_tile<Math>(job.geometry,
                           [&](auto tile) { return conv_slots<decltype(tile)>(job.geometry); });
}

template <typename Math>
int launch_conv(const ConvWeightGrad<typename Math::Scalar>* layers, int count, void* stream) {
  int error = 0;
  for (int next = 0; next < count && error == 0;) {
    error = choose_tile<Math>(layers[next].geometry, [&](auto tile) {
      using Tile = decltype(tile);
      ConvWeightGrads<typename Math::Scalar> together{};
      LaunchShape shape{};
      while (next < count && has_tile_of<Tile>(layers[next].geometry) &&
             add_layer<Tile>(layers[next], together, shape)) {
        ++next;
      }
      if (together.count == 0) return kTooLarge;
      return launch(conv_weight_grad_kernel<Tile>, shape, together, stream);
    });
  }
  return error;
}

}  // namespace privimage::cuda
