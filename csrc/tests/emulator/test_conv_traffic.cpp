// What the tiled CUDA kernel of the per-example weight gradient asks of memory, as the emulator
// counts it: banks, sectors, and how often a fragment is read.
#include "tests/emulator/emulated_conv.h"

namespace privimage {
namespace {

template <typename Tile>
Counters measure(int64_t height, int64_t width, int64_t stride = 1,
                 int64_t most_shared_bytes = cuda::kMostSharedBytes) {
  auto layer = draw_whole_numbers<Bfloat16>(
      geometry_of(Tile::kSide, {1, 1, height, width, 32, 32, stride}), {1});
  layer.most_shared_bytes = most_shared_bytes;
  return emulate<Tile>(layer, {false, true, false, false}, 1).counters;
}

template <typename Tile>
double wavefronts(int64_t height, int64_t width, int64_t stride = 1,
                  int64_t most_shared_bytes = cuda::kMostSharedBytes) {
  const Counters counters = measure<Tile>(height, width, stride, most_shared_bytes);
  return double(counters.wavefronts) / double(counters.matrices);
}

void fragments_are_read_without_bank_conflicts() {
  for (int64_t width : {32, 28, 16, 14, 8})
    CHECK(wavefronts<NarrowTile<Bf16Math>>(8, width) == 1.0);
  CHECK(wavefronts<WideTile<Bf16Math>>(8, 16) == 1.0);
  CHECK(wavefronts<StridedTile<Bf16Math>>(16, 32, 2) == 1.0);
  CHECK(wavefronts<SingleTile<Bf16Math>>(7, 28) == 1.0);
  for (int64_t width : {32, 28, 14, 8}) {  // where a block has less
    CHECK(wavefronts<WideTile<Bf16Math>>(8, width, 1, 99 * 1024) == 1.0);
  }
  // 49 pixels are no multiple of 16: those that fill up all look at the first.
  CHECK(wavefronts<NarrowTile<Bf16Math>>(7, 7) <= 1.1);
  // 24 products of 16 pixels take 64 outputs once and 16 inputs for each of three taps.
  const Counters wide = measure<WideTile<Bf16Math>>(8, 16);
  CHECK(24 * wide.matrices == (16 + 3 * 4) * wide.products);
}

// A full tile's rows, which start anywhere in memory, go out in whole sectors, and its share of the
// sum too; shared memory is passed over as often as its bytes ask for.
template <typename Tile>
void whole_sectors_are_written(double most) {
  using emulator::Access;
  const Shape shape{2, 1, 4, 8, Tile::kIn, Tile::kOut};
  const auto layer =
      draw_whole_numbers<typename Tile::Scalar>(geometry_of(Tile::kSide, shape), {1});
  for (bool half : {false, true}) {
    const auto traffic =
        emulate<Tile>(layer, {true, true, true, false, half}, 1, {1.0, 1.0}).counters.traffic;
    const int64_t values = shape.examples * (layer.weights() + shape.outputs);
    const auto &stores = traffic.of(Access::kGlobalStore), &adds = traffic.of(Access::kGlobalAdd);
    CHECK(stores.least >= values * (half ? 2 : 4) / 32 && stores.ratio() <= most);
    CHECK(adds.least >= values * 8 / 32 && adds.ratio() <= 1.2);
    CHECK(traffic.of(Access::kSharedLoad).ratio() == 1.0);
    // Copies into narrow stages take two passes for one: a pixel's channels fill half of the banks.
    const bool narrow = Tile::kIn * sizeof(typename Tile::Scalar) < 128;
    CHECK(narrow || traffic.of(Access::kSharedStore).ratio() <= 1.02);
  }
}

void rows_are_written_in_whole_sectors() {
  whole_sectors_are_written<WideTile<Bf16Math>>(1.05);
  whole_sectors_are_written<NarrowTile<Bf16Math>>(1.1);
  // An output's 64 values in bfloat16 fill four sectors, and touch five.
  whole_sectors_are_written<SingleTile<Bf16Math>>(1.3);
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::fragments_are_read_without_bank_conflicts();
  privimage::rows_are_written_in_whole_sectors();
}
