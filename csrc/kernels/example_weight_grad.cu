// The per-example weight gradient on a GPU, plainly: one thread a weight. Not run on a GPU yet.
//
// Neighbouring threads share the pixels of grad and read neighbouring channels of x, so that most
// loads hit the cache; tensor cores and shared memory are for a later kernel of this stem.
#include <cuda_runtime.h>

#include "kernels/example_weight_grad.h"

namespace privimage::cuda {
namespace {

constexpr int kThreads = 128;

// ---------------------------------------------------------------------------------------- helpers

template <typename Scalar>
__device__ void put(const ExampleWeightGrad<Scalar>& job, Scalar* to, Scalar sum) {
  *to = job.accumulate ? *to + sum : sum;
}

// ---------------------------------------------------------------------------------------- kernels

// Grid: x = blocks of threads over an example's weights, input channels innermost; y, z = examples.
template <typename Scalar>
__global__ void weight_kernel(ExampleWeightGrad<Scalar> job) {
  const ConvGeometry& shape = job.geometry;
  const ImageStrides &xs = job.x_strides, &gs = job.grad_strides;
  const int64_t taps = shape.height.taps * shape.width.taps;
  const int64_t example = blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (example >= shape.examples || i >= shape.groups * shape.outputs * shape.inputs * taps) return;
  const int64_t input = i % shape.inputs;
  const int64_t tap = i / shape.inputs % taps;
  const int64_t output = i / shape.inputs / taps;
  const int64_t h = tap / shape.width.taps, w = tap % shape.width.taps;
  const Range rows = inside(shape.height, h), columns = inside(shape.width, w);
  const int64_t channel = output / shape.outputs * shape.inputs + input;
  Scalar sum = 0;
  for (int64_t draw = 0; draw < shape.draws; ++draw) {
    const int64_t image = example * shape.draws + draw;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const Scalar* x = job.x + image * xs.row + channel * xs.channel +
                        input_position(shape.height, row, h) * xs.height +
                        input_position(shape.width, columns.begin, w) * xs.width;
      const Scalar* grad = job.grad + image * gs.row + output * gs.channel + row * gs.height +
                           columns.begin * gs.width;
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        sum += *x * *grad;
        x += shape.width.stride * xs.width;
        grad += gs.width;
      }
    }
  }
  put(job, job.weight + example * job.weight_stride + (output * shape.inputs + input) * taps + tap,
      sum);
}

// Grid: x = blocks of threads over the output channels; y, z = examples.
template <typename Scalar>
__global__ void bias_kernel(ExampleWeightGrad<Scalar> job) {
  const ConvGeometry& shape = job.geometry;
  const ImageStrides& gs = job.grad_strides;
  const int64_t example = blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (example >= shape.examples || output >= shape.groups * shape.outputs) return;
  Scalar sum = 0;
  for (int64_t draw = 0; draw < shape.draws; ++draw) {
    const Scalar* image = job.grad + (example * shape.draws + draw) * gs.row + output * gs.channel;
    for (int64_t row = 0; row < shape.height.outputs; ++row) {
      for (int64_t column = 0; column < shape.width.outputs; ++column) {
        sum += image[row * gs.height + column * gs.width];
      }
    }
  }
  put(job, job.bias + example * job.bias_stride + output, sum);
}

// --------------------------------------------------------------------------------------- launcher

// A grid's y and z end at 65,535 blocks; examples go over both.
dim3 grid(int64_t values, int64_t examples) {
  const int64_t deep = (examples + 65534) / 65535;
  const int64_t high = (examples + deep - 1) / deep;
  return dim3(static_cast<unsigned>((values + kThreads - 1) / kThreads),
              static_cast<unsigned>(high), static_cast<unsigned>(deep));
}

template <typename Scalar>
int launch(const ExampleWeightGrad<Scalar>& job, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const ConvGeometry& shape = job.geometry;
  const int64_t outputs = shape.groups * shape.outputs;
  const int64_t weights = outputs * shape.inputs * shape.height.taps * shape.width.taps;
  // A grid of no blocks is an error to CUDA, and nothing to do for us.
  if (shape.examples > 0 && weights > 0) {
    weight_kernel<<<grid(weights, shape.examples), kThreads, 0, queue>>>(job);
  }
  if (shape.examples > 0 && outputs > 0 && job.bias != nullptr) {
    bias_kernel<<<grid(outputs, shape.examples), kThreads, 0, queue>>>(job);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_example_weight_grad(const ExampleWeightGrad<float>& job, void* stream) {
  return launch(job, stream);
}
int launch_example_weight_grad(const ExampleWeightGrad<double>& job, void* stream) {
  return launch(job, stream);
}

}  // namespace privimage::cuda
