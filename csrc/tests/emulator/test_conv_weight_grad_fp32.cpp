// The tiled CUDA kernel of the per-example weight gradient on float32, in tf32 and exactly,
// emulated, against float64 on ragged shapes.
#include "tests/emulator/conv_checks.h"

namespace privimage {
namespace {

template <typename Math>
void whole_numbers_are_exact() {
  is_exact<NarrowTile<Math>>({1, 2, 7, 7, 32, 24});
  is_exact<NarrowTile<Math>>({1, 1, 9, 13, 3, 5});
  is_exact<NarrowTile<Math>>({1, 2, 4, 5, 12, 2});
  is_exact<WideTile<Math>>({1, 3, 5, 6, 72, 40});  // more bands than stages
  is_exact<StridedTile<Math>>({1, 1, 11, 18, 8, 12, 2});
  is_exact<SingleTile<Math>>({2, 3, 5, 9, 20, 64});
}

void nothing_to_add_gives_zero() { is_exact<SingleTile<Fp32Math>>({2, 1, 4, 4, 0, 8}); }

void fractions_are_close_to_float64() {
  is_close<NarrowTile<Fp32Math>>({1, 2, 8, 9, 32, 32}, 4e-7);
  is_close<NarrowTile<Tf32Math>>({1, 2, 8, 9, 32, 32}, 0x1p-10);
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::whole_numbers_are_exact<privimage::Tf32Math>();
  privimage::whole_numbers_are_exact<privimage::Fp32Math>();
  privimage::nothing_to_add_gives_zero();
  privimage::fractions_are_close_to_float64();
  privimage::half_rows_are_measured<privimage::SingleTile<privimage::Fp32Math>>(
      {2, 1, 4, 3, 20, 33});
  privimage::examples_do_not_touch_each_other<privimage::Tf32Math>();
  privimage::examples_do_not_touch_each_other<privimage::Fp32Math>();
}
