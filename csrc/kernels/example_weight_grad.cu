// The per-example weight gradients on a GPU: entry points and launcher. Layers that fit go to the
// tiled kernel, biases included and several in one launch; the rest to the plain ones.
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
  const BiasGrad<Scalar> bias = bias_of(job, weight_blocks(shape));
  return launch(bias_kernel<Scalar>, bias_launch<Scalar>(shape.examples, bias.channels), bias,
                stream);
}

template <typename Math, typename... How>
int launch_layers(const WeightGradOnGpu<typename Math::Scalar>* jobs, int count, void* stream,
                  How... how) {
  ConvWeightGrad<typename Math::Scalar> tiles[kMostLayers];
  int tiled_layers = 0;
  for (int i = 0; i < count; ++i) {
    if (const auto tile = tiled<Math>(jobs[i], most_shared_bytes())) {
      tiles[tiled_layers++] = *tile;
    } else if (const int error = launch_plain(jobs[i], stream); error != 0) {
      return error;
    }
  }
  return launch_conv_weight_grads(tiles, tiled_layers, how..., stream);
}

}  // namespace

int64_t weight_grad_slots(const WeightGradOnGpu<Bfloat16>& job) {
  const auto tiles = tiled<Bf16Math>(job, most_shared_bytes());
  return tiles ? conv_weight_grad_slots(*tiles) : plain_slots(job);
}
int64_t weight_grad_slots(const WeightGradOnGpu<float>& job) {
  const auto tiles = tiled<Fp32Math>(job, most_shared_bytes());
  return tiles ? conv_weight_grad_slots(*tiles, Precision::kExact) : plain_slots(job);
}
int64_t weight_grad_slots(const WeightGradOnGpu<double>& job) { return plain_slots(job); }

int launch_example_weight_grads(const WeightGradOnGpu<Bfloat16>* jobs, int count, void* stream) {
  return launch_layers<Bf16Math>(jobs, count, stream);
}
int launch_example_weight_grads(const WeightGradOnGpu<float>* jobs, int count, void* stream) {
  return launch_layers<Fp32Math>(jobs, count, stream, Precision::kExact);
}
int launch_example_weight_grads(const WeightGradOnGpu<double>* jobs, int count, void* stream) {
  for (int i = 0; i < count; ++i) {
    if (const int error = launch_plain(jobs[i], stream); error != 0) return error;
  }
  return 0;
}

}  // namespace privimage::cuda
