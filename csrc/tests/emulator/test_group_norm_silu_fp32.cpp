// The CUDA kernels of the fused normalisation on float32 and float64, emulated, against float64 on
// ragged shapes.
#include "tests/emulator/emulated_group_norm.h"

namespace privimage {
namespace {

void matches_the_definition() {
  uint64_t seed = 0;
  for (bool silu : {true, false}) {
    // examples, draws, channels, pixels, groups, channels last
    matches<float>({2, 2, 32, 49, 8, true, silu}, true, ++seed);
    matches<float>({1, 2, 36, 10, 3, true, silu}, true, ++seed);
    matches<float>({2, 1, 6, 28, 3, false, silu}, true, ++seed);
    matches<float>({1, 2, 5, 1100, 1, false, silu}, true, ++seed);
    matches<float>({1, 2, 40, 24, 2, false, silu}, true, ++seed);  // a warp has several columns
    matches<float>({2, 3, 7, 9, 7, true, silu}, false, ++seed);
    matches<double>({1, 2, 12, 13, 4, true, silu}, false, ++seed);
    matches<double>({2, 2, 9, 20, 3, false, silu}, false, ++seed);
    matches<float>({1, 1, 300, 3, 1, true, silu}, true, ++seed);
    matches<float>({1, 1, 600, 1, 2, false, silu}, false, ++seed);  // more columns than threads
  }
  matches<float>({0, 2, 8, 4, 2, true, true}, true, ++seed);
  matches<float>({2, 0, 8, 4, 2, true, true}, true, ++seed);
  matches<float>({2, 2, 8, 0, 2, true, true}, true, ++seed);
  matches<double>({2, 2, 0, 5, 2, false, true}, false, ++seed);
}

// What is not finite stays in its example.
void examples_do_not_touch_each_other() {
  Layer<float> layer = draw<float>({3, 2, 8, 20, 2, true, true}, {5});
  const Result<float> clean = run(layer, 1, true, false);
  const int64_t values = 2 * 8 * 20;
  layer.x[values + 3] = std::numeric_limits<float>::infinity();
  layer.grad[values + 9] = std::numeric_limits<float>::quiet_NaN();
  const Result<float> mixed = run(layer, 2, true, false);
  for (int64_t i = 0; i < values; ++i) {
    for (int64_t example : {0, 2}) {
      CHECK(mixed.y[example * values + i] == clean.y[example * values + i]);
      CHECK(mixed.grad_x[example * values + i] == clean.grad_x[example * values + i]);
    }
  }
  for (int64_t c = 0; c < 8; ++c) {
    CHECK(mixed.grad_weight[c] == clean.grad_weight[c]);
    CHECK(mixed.grad_weight[2 * 10 + c] == clean.grad_weight[2 * 10 + c]);
  }
  CHECK(!std::isfinite(mixed.grad_weight[10]));
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::matches_the_definition();
  privimage::examples_do_not_touch_each_other();
}
