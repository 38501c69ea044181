// The tiled weight gradient of float32 activations, exact or on tensor cores.
#include "kernels/conv_weight_grad_launch.cuh"

namespace privimage::cuda {

int64_t conv_weight_grad_slots(const ConvWeightGrad<float>& job, Precision precision) {
  return precision == Precision::kTf32 ? conv_slots_of<Tf32Math>(job)
                                       : conv_slots_of<Fp32Math>(job);
}

int launch_conv_weight_grads(const ConvWeightGrad<float>* layers, int count, Precision precision,
                             void* stream) {
  return precision == Precision::kTf32 ? launch_conv<Tf32Math>(layers, count, stream)
                                       : launch_conv<Fp32Math>(layers, count, stream);
}

}  // namespace privimage::cuda
