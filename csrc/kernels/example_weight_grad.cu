// The per-example weight gradient on a GPU: entry points and launcher. Layers that fit go to the
// tiled kernel, the rest and the bias to the plain ones of example_weight_grad.cuh.
#include "kernels/example_weight_grad.cuh"
#include "kernels/example_weight_grad.h"
#include "kernels/launch.cuh"
#include "kernels/weight_grad_route.h"

namespace privimage::cuda {
namespace {

template <typename Scalar>
__global__ void weight_kernel(ExampleWeightGrad<Scalar> job) {
  plain_weight_grad(Block{}, job);
}

template <typename Scalar>
__global__ void __launch_bounds__(kBiasChannels* kBiasLanes)
    bias_kernel(ExampleWeightGrad<Scalar> job) {
  bias_grad(Block{}, job);
}

template <typename Scalar>
int launch_plain(const ExampleWeightGrad<Scalar>& job, void* stream) {
  return launch(weight_kernel<Scalar>, weight_launch(job.geometry), job, stream);
}

template <typename Scalar>
int launch_bias(const ExampleWeightGrad<Scalar>& job, void* stream) {
  if (job.bias == nullptr) return 0;
  return launch(bias_kernel<Scalar>, bias_launch<Scalar>(job.geometry), job, stream);
}

}  // namespace

int launch_example_weight_grad(const ExampleWeightGrad<Bfloat16>& job, void* stream) {
  const auto tiles = tiled<Bf16Math>(job);
  const int error = tiles ? launch_conv_weight_grad(*tiles, stream) : launch_plain(job, stream);
  return error != 0 ? error : launch_bias(job, stream);
}

int launch_example_weight_grad(const ExampleWeightGrad<float>& job, void* stream) {
  const auto tiles = tiled<Fp32Math>(job);
  const int error = tiles ? launch_conv_weight_grad(*tiles, Precision::kExact, stream)
                          : launch_plain(job, stream);
  return error != 0 ? error : launch_bias(job, stream);
}

int launch_example_weight_grad(const ExampleWeightGrad<double>& job, void* stream) {
  const int error = launch_plain(job, stream);
  return error != 0 ? error : launch_bias(job, stream);
}

}  // namespace privimage::cuda
