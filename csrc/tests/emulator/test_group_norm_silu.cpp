// The CUDA kernels of the fused normalisation on bfloat16, emulated, against float64 on ragged
// shapes, and what they ask of memory.
#include "tests/emulator/emulated_group_norm.h"

namespace privimage {
namespace {

void matches_the_definition() {
  uint64_t seed = 0;
  for (bool silu : {true, false}) {
    // examples, draws, channels, pixels, groups, channels last
    matches<Bfloat16>({2, 2, 32, 49, 8, true, silu}, true, ++seed);
    matches<Bfloat16>({1, 1, 96, 30, 24, true, silu}, true, ++seed);   // three slabs
    matches<Bfloat16>({1, 2, 48, 17, 16, true, silu}, true, ++seed);   // threads without a column
    matches<Bfloat16>({1, 1, 312, 5, 104, true, silu}, true, ++seed);  // the last slab is narrower
    matches<Bfloat16>({1, 2, 384, 7, 1, true, silu}, true, ++seed);  // more columns than a warp has
    matches<Bfloat16>({1, 3, 8, 400, 2, true, silu}, true, ++seed);  // more pixels than threads
    matches<Bfloat16>({2, 2, 6, 48, 3, false, silu}, true, ++seed);
    matches<Bfloat16>({1, 2, 10, 15, 5, true, silu}, false, ++seed);  // channels no multiple of 8
    matches<Bfloat16>({1, 2, 6, 35, 2, false, silu}, false, ++seed);  // nor pixels
    matches<Bfloat16>({1, 2, 16, 24, 4, true, silu}, false, ++seed, false);
  }
}

// Activations are read once and written once, in whole sectors; and the unit that loads and stores,
// a pass for each 128 bytes of shared memory or line of global memory, is done before the bus is,
// which brings a multiprocessor of an H100 15 bytes a clock.
void memory_is_read_once_and_bounds() {
  using emulator::Access;
  for (const GroupNormShape& shape : {GroupNormShape{1, 1, 64, 1024, 16, true, true},
                                      GroupNormShape{1, 1, 128, 64, 32, true, true}}) {
    const Result<Bfloat16> found = run(draw<Bfloat16>(shape, {1}), 1, true, false);
    const int64_t sectors = shape.channels * shape.pixels * int64_t{sizeof(Bfloat16)} / 32;
    for (int arrays : {1, 2}) {
      const emulator::TrafficCounter& traffic = found.traffic[arrays - 1];
      const emulator::Traffic &from = traffic.of(Access::kGlobalLoad),
                              &to = traffic.of(Access::kGlobalStore);
      CHECK(from.taken == arrays * sectors && to.taken == sectors);
      const emulator::Traffic &loads = traffic.of(Access::kSharedLoad),
                              &stores = traffic.of(Access::kSharedStore);
      CHECK(loads.ratio() <= 1.6 && stores.ratio() <= 1.6);
      const int64_t passes = loads.taken + stores.taken + from.lines + to.lines;
      CHECK(passes <= (arrays + 1) * sectors * 32 / 15);
    }
  }
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::matches_the_definition();
  privimage::memory_is_read_once_and_bounds();
}
