// The per-example weight gradient of a convolution on a GPU: entry points and launcher; the kernel
// is in conv_weight_grad.cuh.
#include "kernels/conv_weight_grad.cuh"

namespace privimage::cuda {
namespace {

using Conv3Wide = ConvTile<3, 64, 64>;
using Conv3Narrow = ConvTile<3, 32, 32>;
using Conv1 = ConvTile<1, 64, 64>;

template <typename Tile, bool kStore>
__global__ void __launch_bounds__(Tile::kThreads, 1) conv_weight_grad_kernel(ConvWeightGrad job) {
  conv_weight_grad<Tile, kStore>(Block{}, job);
}

// The kernel counts within an image, and bands of an example, in 32 bits; a grid has 65,535 rows.
template <typename Tile>
bool fits(const ConvWeightGrad& job) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const int64_t channels = job.in_channels > job.out_channels ? job.in_channels : job.out_channels;
  const ConvBand band = conv_band<Tile>(job);
  return job.height < kMost && job.width < kMost && channels < kMost && job.examples < kMost &&
         job.height * job.width < kMost && job.height * job.width * channels < kMost &&
         job.draws < kMost && job.draws * band.rows * band.columns < kMost &&
         conv_slots<Tile>(job) < 65536;
}

template <typename Tile, bool kStore>
int launch(const ConvWeightGrad& job, void* stream) {
  const int64_t slots = conv_slots<Tile>(job);
  if (job.examples == 0 || slots == 0) return 0;
  if (!fits<Tile>(job)) return static_cast<int>(cudaErrorInvalidValue);
  const int bytes = conv_band<Tile>(job).shared_bytes;
  const auto kernel = conv_weight_grad_kernel<Tile, kStore>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return static_cast<int>(error);
  const dim3 blocks(static_cast<unsigned>(job.examples), static_cast<unsigned>(slots));
  kernel<<<blocks, Tile::kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(job);
  return static_cast<int>(cudaGetLastError());
}

// Calls run(tile) with the tile that fits the layer.
template <typename Run>
auto choose_tile(const ConvWeightGrad& job, int side, Run run) {
  if (side == 1) return run(Conv1{});
  if (job.out_channels <= 32 && job.in_channels <= 32) return run(Conv3Narrow{});
  return run(Conv3Wide{});
}

}  // namespace

int64_t conv_weight_grad_slots(const ConvWeightGrad& job, int side) {
  return choose_tile(job, side, [&](auto tile) { return conv_slots<decltype(tile)>(job); });
}

int launch_conv_weight_grad(const ConvWeightGrad& job, int side, bool store, void* stream) {
  if (side != 1 && side != 3) return static_cast<int>(cudaErrorInvalidValue);
  return choose_tile(job, side, [&](auto tile) {
    using Tile = decltype(tile);
    return store ? launch<Tile, true>(job, stream) : launch<Tile, false>(job, stream);
  });
}

}  // namespace privimage::cuda
