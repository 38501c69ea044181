// The per-example weight gradient on a GPU: entry points and launcher. Layers that fit go to the
// tiled kernel, bias included; the rest to the plain ones.
#include "kernels/bias_grad.cuh"
#include "kernels/example_weight_grad.cuh"
#include "kernels/example_weight_grad.h"
#include "kernels/launch.cuh"
#include "kernels/weight_grad_route.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void weight_kernel(WeightGradOnGpu<Scalar> job) {
  plain_weight_grad(Block{}, job);
}

template <typename Scalar>
__global__ void __launch_bounds__(kBiasThreads, 1) bias_kernel(BiasGrad<Scalar> job) {
  bias_grad(Block{}, job);
}

template <typename Scalar>
int launch_plain(const WeightGradOnGpu<Scalar>& job, void* stream) {
  const ConvGeometry& shape = job.layer.geometry;
  const int error = launch(weight_kernel<Scalar>, weight_launch(shape), job, stream);
  if (error != 0 || !job.with_bias) return error;
  const BiasGrad<Scalar> bias = bias_of(job, weight_blocks(shape), plain_slots(job));
  return launch(bias_kernel<Scalar>, bias_launch<Scalar>(shape.examples, bias.channels), bias,
                stream);
}

}  // namespace

int64_t weight_grad_slots(const WeightGradOnGpu<Bfloat16>& job) {
  const auto tiles = tiled<Bf16Math>(job);
  return tiles ? conv_weight_grad_slots(*tiles) : plain_slots(job);
}
int64_t weight_grad_slots(const WeightGradOnGpu<float>& job) {
  const auto tiles = tiled<Fp32Math>(job);
  return tiles ? conv_weight_grad_slots(*tiles, Precision::kExact) : plain_slots(job);
}
int64_t weight_grad_slots(const WeightGradOnGpu<double>& job) { return plain_slots(job); }

int launch_example_weight_grad(const WeightGradOnGpu<Bfloat16>& job, void* stream) {
  const auto tiles = tiled<Bf16Math>(job);
  return tiles ? launch_conv_weight_grad(*tiles, stream) : launch_plain(job, stream);
}
int launch_example_weight_grad(const WeightGradOnGpu<float>& job, void* stream) {
  const auto tiles = tiled<Fp32Math>(job);
  return tiles ? launch_conv_weight_grad(*tiles, Precision::kExact, stream)
               : launch_plain(job, stream);
}
int launch_example_weight_grad(const WeightGradOnGpu<double>& job, void* stream) {
  return launch_plain(job, stream);
}

}  // namespace privimage::cuda
