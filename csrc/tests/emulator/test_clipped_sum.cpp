// The CUDA kernels of the clipped sum, emulated, against the CPU's: bit by bit.
#include <cmath>
#include <limits>
#include <random>

#include "cpu/clipped_sum.h"
#include "kernels/clipped_sum.cuh"
#include "kernels/scaled_sum.cuh"
#include "tests/emulator/guarded.h"

namespace privimage {
namespace {

using cuda::Block;
using emulator::Guarded;

// Multiples of 1/64 whose squares add up exactly, in whatever order: then the scales, which two
// orders of summation could round apart, are equal to the last bit.
template <typename Scalar>
std::vector<Scalar> draw_parts(int64_t examples, int64_t parameters, std::mt19937_64& random) {
  std::vector<Scalar> parts(examples * parameters);
  for (Scalar& value : parts) value = Scalar(int(random() % 129) - 64) / 64;
  if (parameters == 0) return parts;
  const Scalar infinity = std::numeric_limits<Scalar>::infinity();
  if (examples > 1) parts[2 * parameters - 1] = infinity;
  if (examples > 2) parts[2 * parameters] = -std::numeric_limits<Scalar>::quiet_NaN();
  if (examples > 3) {
    for (int64_t i = 3 * parameters; i < 4 * parameters; ++i) parts[i] /= 1024;  // not clipped
  }
  return parts;
}

template <typename Scalar>
void equals_the_cpu(int64_t examples, int64_t parameters, const ClipRule& rule, uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<Scalar> parts = draw_parts<Scalar>(examples, parameters, random);
  // The last of the columns belongs to another layer.
  const int64_t stride = parameters, own = std::max<int64_t>(parameters - 1, 0);
  std::vector<double> scales(examples);
  std::vector<int64_t> sum(parameters);
  const ClippedSum<Scalar> cpu{parts.data(), scales.data(), sum.data(), examples,
                               own,          stride,        rule};
  cpu::clipped_sum_scales(cpu, 0, examples);
  cpu::clipped_sum_sums(cpu, 0, own);

  Guarded<Scalar> device_parts(parts);
  const Columns all{0, own};
  const int64_t pieces = cuda::squared_norm_pieces(all);
  Guarded<double> partial(examples * pieces), device_scales(examples);
  Guarded<int64_t> device_sum(own);
  const ClippedSum<Scalar> job{
      device_parts.data(), device_scales.data(), device_sum.data(), examples, own, stride, rule};
  const KeptParts<Scalar> kept{job.parts, stride, examples, own};
  const auto emulate = [&](const cuda::LaunchShape& shape, auto kernel) {
    emulator::run({shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, seed},
                  [&](const Block& block) { kernel(block); });
    return 0;
  };
  // What the launcher queues, one after another.
  cuda::for_each_launch(kept, &all, 1, partial.data(), [&](const auto& squares, auto shape) {
    return emulate(shape, [&](const Block& block) { cuda::write_squares(block, squares); });
  });
  emulate(cuda::row_sums_launch(examples), [&](const Block& block) {
    cuda::add_row(block, {partial.data(), examples, pieces, device_scales.data()});
  });
  emulate(cuda::scales_launch(examples),
          [&](const Block& block) { cuda::write_scales(block, job); });
  for (int64_t i = 0; i < examples; ++i) CHECK(device_scales[i] == scales[i]);
  emulate(cuda::sums_launch(own), [&](const Block& block) {
    cuda::write_sums(block, cuda::ScaledSum<Scalar>{kept, job.scales, false, job.sum});
  });
  for (int64_t i = 0; i < own; ++i) CHECK(device_sum[i] == sum[i]);
}

template <typename Scalar>
void equals_the_cpu_everywhere() {
  uint64_t seed = 0;
  for (int64_t examples : {0, 1, 2, 5, 9, 200}) {
    for (int64_t parameters : {0, 1, 2, 31, 257, 513, 3001}) {
      if (examples > 9 && parameters > 31) continue;
      for (const ClipRule& rule :
           {ClipRule{0.7}, ClipRule{0.7, 0.5}, ClipRule{0.7, 1.0, true, 0.01}}) {
        equals_the_cpu<Scalar>(examples, parameters, rule, ++seed);
      }
    }
  }
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::equals_the_cpu_everywhere<float>();
  privimage::equals_the_cpu_everywhere<double>();
}
