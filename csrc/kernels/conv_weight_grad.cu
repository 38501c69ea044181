// The tiled weight gradient of bfloat16 activations, on tensor cores.
#include "kernels/conv_weight_grad_launch.cuh"

namespace privimage::cuda {

int64_t conv_weight_grad_slots(const ConvWeightGrad<Bfloat16>& job) {
  return conv_slots_of<Bf16Math>(job);
}

int launch_conv_weight_grads(const ConvWeightGrad<Bfloat16>* layers, int count, void* stream) {
  return launch_conv<Bf16Math>(layers, count, stream);
}

}  // namespace privimage::cuda
