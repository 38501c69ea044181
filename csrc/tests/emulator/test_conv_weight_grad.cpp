// The tiled CUDA kernel of the per-example weight gradient on bfloat16, emulated, against float64
// on ragged shapes: every tile, every output.
#include "tests/emulator/conv_checks.h"

namespace privimage {
namespace {

void whole_numbers_are_exact() {
  for (const Shape& shape : {
           Shape{2, 1, 8, 8, 32, 32},   // one band
           Shape{1, 4, 7, 7, 32, 24},   // 8 pixels span rows, the last 16 are not full
           Shape{2, 2, 5, 3, 8, 16},    // smaller than a warp's tile
           Shape{2, 3, 11, 1, 8, 8},    // halo wider than the image
           Shape{1, 1, 1, 40, 16, 8},   // two bands side by side, the second narrow
           Shape{1, 4, 9, 13, 3, 32},   // pieces of a tile that no pixel has
           Shape{2, 1, 14, 14, 32, 3},  // likewise of the gradient
           Shape{1, 2, 5, 9, 1, 12},    // a piece that is not full, and two
           Shape{2, 1, 6, 5, 9, 2},
           Shape{1, 3, 4, 4, 17, 5},  // three, of which a power of two is brought
           Shape{1, 1, 28, 28, 27, 20},
           Shape{1, 2, 9, 9, 8, 8, 1, 0},  // no padding
           Shape{1, 1, 6, 7, 8, 8, 1, 3},  // more than the taps reach
       }) {
    is_exact<NarrowTile<Bf16Math>>(shape);
  }
  is_exact<WideTile<Bf16Math>>({1, 1, 14, 14, 64, 64});
  is_exact<WideTile<Bf16Math>>({2, 1, 7, 7, 72, 40});    // two tiles of inputs
  is_exact<WideTile<Bf16Math>>({1, 2, 4, 6, 128, 128});  // four tiles
  is_exact<WideTile<Bf16Math>>({1, 1, 10, 9, 33, 65});
  is_exact<WideTile<Bf16Math>>({1, 1, 3, 3, 512, 256});  // 256 x 4608 weights
  is_exact<StridedTile<Bf16Math>>({2, 1, 14, 14, 40, 64, 2});
  is_exact<StridedTile<Bf16Math>>({1, 2, 19, 37, 8, 16, 2});  // odd sizes, three bands side by side
  is_exact<StridedTile<Bf16Math>>({1, 1, 9, 8, 16, 5, 2, 0});
  is_exact<SingleTile<Bf16Math>>({2, 4, 7, 7, 64, 64});
  is_exact<SingleTile<Bf16Math>>({1, 1, 14, 28, 96, 128});
  is_exact<SingleTile<Bf16Math>>({3, 1, 1, 300, 24, 8});  // a linear layer's rows
  is_exact<SingleTile<Bf16Math>>({1, 2, 9, 11, 8, 20, 2});
  is_exact<SingleTile<Bf16Math>>({1, 1, 7, 6, 8, 8, 3, 1});
  is_exact<SingleTile<Bf16Math>>({1, 1, 1, 1, 1, 1});
}

void nothing_to_add_gives_zero() {
  is_exact<NarrowTile<Bf16Math>>({2, 0, 4, 4, 8, 8});
  is_exact<NarrowTile<Bf16Math>>({2, 1, 0, 4, 8, 8});
  is_exact<SingleTile<Bf16Math>>({2, 1, 4, 0, 8, 8});
  is_exact<SingleTile<Bf16Math>>({0, 1, 4, 4, 8, 8});
}

void fractions_are_close_to_float64() {
  is_close<NarrowTile<Bf16Math>>({1, 4, 14, 14, 32, 32}, 4e-7);
  is_close<WideTile<Bf16Math>>({1, 1, 9, 16, 48, 64}, 4e-7);
  is_close<StridedTile<Bf16Math>>({1, 2, 16, 16, 16, 64, 2}, 4e-7);
  is_close<SingleTile<Bf16Math>>({2, 4, 8, 8, 64, 32}, 4e-7);
}

void half_rows_are_measured_as_they_are() {
  half_rows_are_measured<NarrowTile<Bf16Math>>({2, 2, 6, 5, 16, 24});
  half_rows_are_measured<WideTile<Bf16Math>>({1, 1, 5, 6, 72, 40});
  half_rows_are_measured<StridedTile<Bf16Math>>({1, 1, 9, 8, 16, 5, 2});
  half_rows_are_measured<SingleTile<Bf16Math>>({3, 2, 4, 3, 20, 33});
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::whole_numbers_are_exact();
  privimage::nothing_to_add_gives_zero();
  privimage::fractions_are_close_to_float64();
  privimage::half_rows_are_measured_as_they_are();
  privimage::examples_do_not_touch_each_other<privimage::Bf16Math>();
}
