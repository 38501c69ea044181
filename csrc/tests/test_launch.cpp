// What the host works out before a kernel starts: grids, shared memory, sizes beyond 32 bits.
#include <algorithm>
#include <random>

#include "check.h"
#include "kernels/group_norm_plan.h"
#include "kernels/weight_grad_route.h"

using namespace privimage;
using cuda::GroupNormPlan;
using cuda::LaunchShape;

constexpr int64_t kHuge = int64_t{1} << 40;

void grids_are_empty_or_possible() {
  CHECK(cuda::blocks_for(0, 256) == 0);
  CHECK(cuda::blocks_for(1, 256) == 1 && cuda::blocks_for(256, 256) == 1);
  CHECK(cuda::blocks_for(257, 256) == 2);
  CHECK(cuda::blocks_for(INT64_MAX, 2) == (int64_t{1} << 62));
  CHECK((LaunchShape{0, 4, 32, 0}).empty() && (LaunchShape{4, 0, 32, 0}).empty());
  CHECK((LaunchShape{INT32_MAX, 65535, 32, cuda::kMostSharedBytes}).possible());
  CHECK(!(LaunchShape{int64_t{1} << 31, 1, 32, 0}).possible());
  CHECK(!(LaunchShape{1, 65536, 32, 0}).possible());
  CHECK(!(LaunchShape{1, 1, 32, cuda::kMostSharedBytes + 1}).possible());
}

template <typename Scalar>
void slabs_cover_every_group_once(const GroupNormShape& shape, int arrays, bool aligned) {
  constexpr int64_t kVector = cuda::kVectorBytes / sizeof(Scalar);
  const GroupNormPlan plan = cuda::plan_group_norm<Scalar>(shape, arrays, aligned);
  CHECK(plan.fits);
  CHECK(plan.slab_groups >= 1 && plan.slab_groups <= shape.groups);
  CHECK((plan.slabs - 1) * plan.slab_groups < shape.groups);
  CHECK(plan.slabs * plan.slab_groups >= shape.groups);
  CHECK(plan.array_bytes * arrays == plan.partials_at);
  CHECK(plan.partials_at <= plan.totals_at && plan.totals_at <= plan.tables_at);
  CHECK(plan.tables_at <= plan.shared_bytes && plan.totals_at % sizeof(Wide<Scalar>) == 0);
  CHECK(plan.threads % plan.across == 0 && plan.threads % 32 == 0);
  CHECK(plan.threads <= cuda::kMostNormThreads);
  CHECK(cuda::group_norm_launch(shape, plan).possible());
  CHECK(plan.vectors || plan.array_bytes == 0);
  if (!plan.vectors) return;
  CHECK(aligned && sizeof(Scalar) <= 4);
  const int64_t width = shape.channels / shape.groups;
  CHECK((shape.channels_last ? plan.slab_groups * width : shape.pixels) % kVector == 0);
  CHECK(plan.tables_at % 16 == 0 || !shape.channels_last);  // read as vectors
  // Room for every vector of the slab.
  CHECK(plan.array_bytes >=
        plan.slab_groups * width * shape.pixels * static_cast<int64_t>(sizeof(Scalar)));
}

void normalisation_is_cut_as_its_kernels_need() {
  std::mt19937_64 random(3);
  const auto upto = [&](int64_t most) { return 1 + int64_t(random() % uint64_t(most)); };
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t groups = upto(trial % 2 ? 32 : 5);
    const GroupNormShape shape{upto(9),
                               upto(4),
                               groups * upto(17),
                               upto(trial % 3 ? 80 : 5000),
                               groups,
                               bool(random() % 2),
                               true};
    const bool aligned = random() % 4 != 0;
    const int arrays = trial % 2 + 1;
    slabs_cover_every_group_once<Bfloat16>(shape, arrays, aligned);
    slabs_cover_every_group_once<float>(shape, arrays, aligned);
    slabs_cover_every_group_once<double>(shape, arrays, aligned);
  }
}

// The layers of the paper's networks go the fast way, backwards as well.
void layers_of_the_paper_come_in_vectors() {
  for (int64_t side : {4, 8, 16, 28, 32, 64}) {
    for (int64_t channels : {32, 64, 96, 128, 256}) {
      const GroupNormShape shape{4, 2, channels, side * side, channels / 4, true, true};
      CHECK(cuda::plan_group_norm<Bfloat16>(shape, 1, true).vectors);
      CHECK(cuda::plan_group_norm<Bfloat16>(shape, 2, true).vectors);
      CHECK(cuda::plan_group_norm<float>(shape, 1, true).vectors);
    }
  }
}

// What waits for memory, computes and writes are at least three blocks of a multiprocessor of
// sm_90, which has 228 KB: each block takes one more than it asks for. No thread is without work.
void layers_of_the_paper_share_a_multiprocessor() {
  struct Layer {
    int64_t side, channels, forward, backward;  // slabs of a row
  };
  for (const Layer& layer :
       {Layer{32, 32, 1, 2}, Layer{32, 64, 2, 4}, Layer{32, 96, 3, 6}, Layer{32, 128, 4, 8},
        Layer{16, 32, 1, 1}, Layer{16, 64, 1, 2}, Layer{16, 96, 3, 3}, Layer{16, 128, 2, 4},
        Layer{8, 64, 1, 1}, Layer{8, 96, 3, 3}, Layer{8, 128, 1, 2}}) {
    const int64_t channels = layer.channels, pixels = layer.side * layer.side;
    const GroupNormShape shape{64, 8, channels, pixels, channels / 4, true, true};
    for (int arrays : {1, 2}) {
      const GroupNormPlan plan = cuda::plan_group_norm<Bfloat16>(shape, arrays, true);
      CHECK(3 * (plan.shared_bytes + 1024) <= 228 * 1024);
      CHECK(plan.slabs == (arrays == 1 ? layer.forward : layer.backward));
      CHECK(plan.slabs * plan.slab_groups == shape.groups);
      CHECK(plan.slabs * plan.across * 8 == channels);
      CHECK(plan.steps >= cuda::kWorthwhileSteps && plan.threads <= cuda::kNormThreads);
      CHECK(plan.slabs * plan.threads * plan.steps * 8 == channels * pixels);
      CHECK(cuda::group_norm_launch(shape, plan).blocks_x == 512 * plan.slabs);
    }
  }
  // Too large for two blocks: one of twice the threads.
  const GroupNormShape large{64, 8, 32, 64 * 64, 8, true, true};
  const GroupNormPlan plan = cuda::plan_group_norm<Bfloat16>(large, 2, true);
  CHECK(plan.threads == 512 && plan.slabs == 4);
}

void normalisation_refuses_what_it_cant_count() {
  const auto plan = [](int64_t channels, int64_t pixels, bool last) {
    return cuda::plan_group_norm<Bfloat16>({1, 1, channels, pixels, 1, last, true}, 2, true);
  };
  CHECK(plan(8, (int64_t{1} << 28) - 8192, true).fits);
  CHECK(!plan(8, int64_t{1} << 28, true).fits);
  CHECK(!plan(8, kHuge, true).fits && !plan(8, kHuge, false).fits);
  CHECK(!plan(kHuge, 0, true).fits);
  // One group of very many channels: shared memory can't hold a sum for each.
  const GroupNormShape wide{1, 1, 40000, 4, 1, true, true};
  CHECK(!cuda::group_norm_launch(wide, plan(40000, 4, true)).possible());
  // More rows than a grid has.
  const GroupNormShape long_one{kHuge, 8, 8, 4, 2, true, true};
  const auto of_long = cuda::plan_group_norm<float>(long_one, 1, true);
  CHECK(!cuda::group_norm_launch(long_one, of_long).possible());
  CHECK(!cuda::affine_launch(long_one).possible());
}

void normalisation_of_nothing_starts_nothing() {
  for (int64_t examples : {0, 3}) {
    const GroupNormShape shape{examples, examples == 0 ? 2 : 0, 8, 16, 2, true, true};
    const auto plan = cuda::plan_group_norm<float>(shape, 2, true);
    CHECK(cuda::group_norm_launch(shape, plan).empty());
  }
  // Without pixels there are moments to write, without channels as well.
  for (const GroupNormShape& shape :
       {GroupNormShape{2, 2, 8, 0, 2, true, true}, GroupNormShape{2, 2, 0, 5, 2, false, true}}) {
    const auto plan = cuda::plan_group_norm<float>(shape, 2, true);
    CHECK(plan.fits && !cuda::group_norm_launch(shape, plan).empty());
  }
  CHECK(cuda::affine_launch({2, 2, 0, 5, 2, false, true}).empty());
}

// ------------------------------------------------------------------ which kernel takes a layer

using cuda::Bf16Math;
using cuda::Fp32Math;
using cuda::Tf32Math;

alignas(16) const float kSomewhere[8] = {};

ConvAxis axis(int64_t inputs, int64_t taps, int64_t stride, int64_t padding) {
  return {inputs, (inputs + 2 * padding - taps) / stride + 1, taps, stride, padding, 1};
}

ImageStrides channels_last(int64_t pitch, const ConvAxis& height, const ConvAxis& width,
                           bool outputs) {
  const int64_t rows = outputs ? height.outputs : height.inputs;
  const int64_t columns = outputs ? width.outputs : width.inputs;
  return {rows * columns * pitch, 1, columns * pitch, pitch};
}

// Values from pixel to pixel where each begins with a vector.
int64_t whole_pixels(int64_t channels) { return (channels + 7) / 8 * 8; }

template <typename Scalar>
WeightGradOnGpu<Scalar> layer(const ConvGeometry& shape, bool with_bias = true) {
  const auto* data = reinterpret_cast<const Scalar*>(kSomewhere);
  WeightGradOnGpu<Scalar> job{};
  job.layer.geometry = shape;
  job.layer.x = job.layer.grad = data;
  job.layer.x_strides =
      channels_last(whole_pixels(shape.groups * shape.inputs), shape.height, shape.width, false);
  job.layer.grad_strides =
      channels_last(whole_pixels(shape.groups * shape.outputs), shape.height, shape.width, true);
  job.with_bias = with_bias;
  return job;
}

const ConvGeometry kUsual{4, 2, 1, 32, 64, axis(16, 3, 1, 1), axis(16, 3, 1, 1)};

bool goes_to_tiles(const ConvGeometry& shape) {
  const bool wide = cuda::tiled<Fp32Math>(layer<float>(shape)).has_value();
  CHECK(wide == cuda::tiled<Tf32Math>(layer<float>(shape)).has_value());
  CHECK(wide == cuda::tiled<Bf16Math>(layer<Bfloat16>(shape)).has_value());
  return wide;
}

void layers_that_fit_go_to_tiles() {
  CHECK(goes_to_tiles(kUsual));
  ConvGeometry shape = kUsual;
  shape.height = axis(9, 3, 2, 0), shape.width = axis(14, 3, 2, 5);
  CHECK(goes_to_tiles(shape));
  shape.width.stride = 1;  // a stride that differs between the axes
  CHECK(!goes_to_tiles(shape));
  shape = kUsual;
  shape.height = axis(16, 1, 3, 1), shape.width = axis(16, 1, 1, 0);
  CHECK(goes_to_tiles(shape));
  shape = kUsual;
  shape.groups = 2;
  CHECK(!goes_to_tiles(shape));
  shape = kUsual;
  shape.width.dilation = 2;
  CHECK(!goes_to_tiles(shape));
  for (int64_t taps : {2, 4, 5}) {
    shape.height = shape.width = axis(16, taps, 1, 1);
    CHECK(!goes_to_tiles(shape));
  }
  shape.height = axis(16, 3, 1, 1), shape.width = axis(16, 1, 1, 0);
  CHECK(!goes_to_tiles(shape));
  shape.height = shape.width = axis(16, 3, 3, 1);
  CHECK(!goes_to_tiles(shape));
}

void only_dense_channels_last_goes_to_tiles() {
  WeightGradOnGpu<float> job = layer<float>(kUsual);
  CHECK(cuda::tiled<Fp32Math>(job).has_value());
  job.layer.x_strides = {32 * 256, 256, 16, 1};  // channels first
  CHECK(!cuda::tiled<Fp32Math>(job).has_value());
  job = layer<float>(kUsual);
  job.layer.grad_strides.row += 64;  // rows apart
  CHECK(!cuda::tiled<Fp32Math>(job).has_value());
  job.layer.geometry.examples = job.layer.geometry.draws = 1;  // of one row, that means nothing
  CHECK(cuda::tiled<Fp32Math>(job).has_value());
  job = layer<float>(kUsual);
  job.layer.x_strides = channels_last(48, kUsual.height, kUsual.width, false);  // a slice
  const auto slice = cuda::tiled<Fp32Math>(job);
  CHECK(slice && slice->x.pitch == 48 && slice->grad.pitch == 64);
  CHECK(slice->bias.strides.width == 64);
  for (int64_t pitch : {34, 28}) {  // pixels that are not aligned, or lie on each other
    job.layer.x_strides = channels_last(pitch, kUsual.height, kUsual.width, false);
    CHECK(!cuda::tiled<Fp32Math>(job).has_value());
  }
  job = layer<float>(kUsual);
  job.layer.x += 1;
  CHECK(!cuda::tiled<Fp32Math>(job).has_value());
  job = layer<float>(kUsual);
  job.layer.grad += 2;
  CHECK(!cuda::tiled<Fp32Math>(job).has_value());
  // A linear layer's rows, whose height and width have no neighbours: their strides mean nothing.
  job = layer<float>({4, 8, 1, 128, 64, axis(1, 1, 1, 0), axis(1, 1, 1, 0)});
  job.layer.x_strides = {128, 1, 77, 5};
  const auto tiles = cuda::tiled<Fp32Math>(job);
  CHECK(tiles && tiles->geometry.draws == 1 && tiles->geometry.width.outputs == 8);
}

void sizes_beyond_32_bits_go_to_the_plain_kernel() {
  const auto with = [](auto change) {
    ConvGeometry shape = kUsual;
    change(shape);
    return goes_to_tiles(shape);
  };
  CHECK(!with([](ConvGeometry& shape) { shape.examples = int64_t{1} << 31; }));
  CHECK(with([](ConvGeometry& shape) { shape.examples = (int64_t{1} << 31) - 1; }));
  CHECK(!with([](ConvGeometry& shape) { shape.draws = kHuge; }));
  CHECK(!with([](ConvGeometry& shape) { shape.inputs = kHuge; }));
  CHECK(!with([](ConvGeometry& shape) { shape.outputs = int64_t{1} << 22; }));
  CHECK(!with([](ConvGeometry& shape) { shape.height = axis(kHuge, 3, 1, 1); }));
  CHECK(!with([](ConvGeometry& shape) { shape.height = shape.width = axis(1 << 20, 3, 1, 1); }));
  CHECK(!with([](ConvGeometry& shape) { shape.height = axis(16, 1, kHuge, kHuge); }));
  CHECK(!with([](ConvGeometry& shape) {
    shape.height = shape.width = axis(1, 1, 1, 0);
    shape.draws = int64_t{1} << 62;
  }));
}

template <typename Math>
void bands_fit_into_shared_memory() {
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t side = trial % 3 == 0 ? 1 : 3, stride = side == 3 ? 1 + trial % 2 : 1;
    const auto draw = [&] {
      return axis(side + int64_t(random() % 90), side, stride, int64_t(random() % 3));
    };
    const ConvGeometry shape{
        2, 2, 1, 1 + int64_t(random() % 300), 1 + int64_t(random() % 300), draw(), draw()};
    cuda::choose_tile<Math>(shape, [&](auto tile) {
      using Tile = decltype(tile);
      const int64_t most = (trial % 2 == 0 ? 99 : 80) * int64_t{1024};
      CHECK(cuda::band_pixels<Tile>(shape, cuda::kMostSharedBytes) == Tile::kMostPixels);
      const int pixels =
          trial % 5 == 0 ? int{Tile::kMostPixels} : cuda::band_pixels<Tile>(shape, most);
      const cuda::ConvBand band = cuda::conv_band<Tile>(shape, pixels);
      CHECK(band.shared_bytes <= (trial % 5 == 0 ? cuda::kMostSharedBytes : most));
      CHECK(band.pixels <= cuda::kMostBandPixels && band.pixels % 16 == 0);
      CHECK(band.x_width * band.x_height <= cuda::kMostBandInputs);
      CHECK(band.width * band.height <= pixels && pixels <= Tile::kMostPixels);
      CHECK(band.x_width <= 256 && band.x_height <= 256);  // places have 8 bits each
      CHECK(band.columns * band.width >= shape.width.outputs);
      CHECK(band.rows * band.height >= shape.height.outputs);
      CHECK(band.pitch >= Tile::kStride * band.phase);
      CHECK(band.stage_bytes % 16 == 0 && band.grad_bytes % 16 == 0);
      return 0;
    });
  }
  static_assert(cuda::kStagesAt % 16 == 0 && cuda::kSumsAt % 8 == 0);
}

// On every kind of GPU a layer has tiles that fit.
void smaller_gpus_get_smaller_bands() {
  const auto fits = [](auto math, const ConvGeometry& shape, int64_t most) {
    using Math = decltype(math);
    const auto tiles = cuda::tiled<Math>(layer<typename Math::Scalar>(shape), most);
    CHECK(tiles);
    cuda::choose_tile<Math>(tiles->geometry, [&](auto tile) {
      CHECK(cuda::conv_launch<decltype(tile)>(*tiles).shared_bytes <= most);
      return 0;
    });
    return tiles->band_pixels;
  };
  CHECK((cuda::weight_launch(kUsual)).possible(48 * 1024));
  CHECK((cuda::bias_launch<double>(4, 64)).possible(48 * 1024));
  for (int64_t kilobytes : {80, 99, 163, 227}) {
    const int64_t most = std::min(kilobytes * 1024, cuda::kMostSharedBytes);
    for (int64_t channels : {3, 8, 32, 64, 256}) {
      for (int64_t side : {1, 4, 8, 16, 28, 32, 64}) {
        for (int64_t taps : {1, 3}) {
          const ConvAxis one = axis(side, taps, 1, taps / 2), two = axis(side, taps, 2, taps / 2);
          for (const ConvAxis& along : {one, two}) {
            const ConvGeometry shape{4, 8, 1, channels, channels, along, along};
            const int half = fits(Bf16Math{}, shape, most), wide = fits(Fp32Math{}, shape, most);
            CHECK(fits(Tf32Math{}, shape, most) == wide);
            CHECK(kilobytes < 99 || (half >= 32 && wide >= 16));
          }
        }
        if (channels % 4 != 0) continue;
        for (int arrays : {1, 2}) {
          const GroupNormShape shape{4, 8, channels, side * side, channels / 4, true, true};
          const GroupNormPlan plan = cuda::plan_group_norm<Bfloat16>(shape, arrays, true, most);
          CHECK(cuda::group_norm_launch(shape, plan).possible(most));
        }
      }
    }
  }
  // The paper's largest layer: bands of 16 x 4 pixels instead of 32 x 4.
  ConvGeometry shape = kUsual;
  shape.inputs = 64, shape.height = shape.width = axis(32, 3, 1, 1);
  CHECK(fits(Bf16Math{}, shape, 99 * 1024) == 64 && fits(Bf16Math{}, shape, 163 * 1024) == 128);
  CHECK(fits(Fp32Math{}, shape, 99 * 1024) == 64);
}

// The squares of a bias lie behind those of its weight in the plain kernel, and among them in
// tiles, of which a layer without inputs has some for its bias.
void a_bias_has_its_squares() {
  ConvGeometry shape = kUsual;
  shape.outputs = 70;
  const auto tiles = cuda::tiled<Bf16Math>(layer<Bfloat16>(shape));
  CHECK(tiles && tiles->bias.channels == 70);
  const auto alone = cuda::tiled<Bf16Math>(layer<Bfloat16>(shape, false));
  CHECK(alone && alone->bias.channels == 0);
  using Tile = cuda::ConvTile<Bf16Math, 3, 1, 64, 64>;
  CHECK(cuda::conv_slots<Tile>(shape) == 2);
  shape.inputs = 0;
  CHECK(cuda::conv_slots<Tile>(shape) == 2);
  shape.inputs = 32;
  shape.groups = 2;
  const int64_t weights = 140 * 32 * 9;
  CHECK(cuda::weight_blocks(shape) == (weights + 127) / 128);
  CHECK(cuda::plain_slots(layer<float>(shape)) == cuda::weight_blocks(shape) + 5);
  CHECK(cuda::plain_slots(layer<float>(shape, false)) == cuda::weight_blocks(shape));
}

// A launch takes layers until they are four, or more blocks than a grid has.
void layers_share_a_launch_while_they_fit() {
  using Tile = cuda::ConvTile<Bf16Math, 1, 1, 64, 64>;
  ConvGeometry shape{3, 2, 1, 130, 70, axis(4, 1, 1, 0), axis(4, 1, 1, 0)};
  CHECK(cuda::has_tile_of<Tile>(shape) && !cuda::has_tile_of<Tile>(kUsual));
  cuda::ConvWeightGrads<Bfloat16> together{};
  LaunchShape whole{};
  for (int64_t i = 0; i < 4; ++i) {
    const auto job = cuda::tiled<Bf16Math>(layer<Bfloat16>(shape));
    CHECK(job && cuda::add_layer<Tile>(*job, together, whole));
    CHECK(together.first_block[i] == i * 6);
  }
  CHECK(whole.blocks_x == 3 && whole.blocks_y == 24 && whole.possible());
  CHECK(!cuda::add_layer<Tile>(together.layers[0], together, whole) && together.count == 4);
  shape.inputs = shape.outputs = 8192;  // 128 x 128 tiles
  const auto large = cuda::tiled<Bf16Math>(layer<Bfloat16>(shape));
  together = {}, whole = {};
  for (int64_t i = 0; i < 3; ++i) CHECK(cuda::add_layer<Tile>(*large, together, whole));
  CHECK(!cuda::add_layer<Tile>(*large, together, whole) && whole.blocks_y == 3 * 128 * 128);
}

void empty_layers_start_nothing_or_write_zeros() {
  ConvGeometry shape = kUsual;
  shape.examples = 0;
  CHECK(cuda::weight_launch(shape).empty() &&
        cuda::bias_launch<float>(shape.examples, shape.outputs).empty());
  const auto none = cuda::tiled<Bf16Math>(layer<Bfloat16>(shape));
  CHECK(none && (cuda::conv_launch<cuda::ConvTile<Bf16Math, 3, 1, 64, 64>>(*none).empty()));
  shape = kUsual;
  shape.outputs = 0;
  CHECK(cuda::weight_launch(shape).empty() &&
        cuda::bias_launch<float>(shape.examples, shape.outputs).empty());
  shape = kUsual;
  shape.draws = 0;
  CHECK(!cuda::weight_launch(shape).empty() &&
        !cuda::bias_launch<float>(shape.examples, shape.outputs).empty());
  shape.examples = int64_t{1} << 50;
  shape.inputs = int64_t{1} << 20;
  CHECK(!cuda::weight_launch(shape).possible());  // and no overflow on the way
}

int main() {
  layers_that_fit_go_to_tiles();
  only_dense_channels_last_goes_to_tiles();
  sizes_beyond_32_bits_go_to_the_plain_kernel();
  bands_fit_into_shared_memory<Bf16Math>();
  bands_fit_into_shared_memory<Tf32Math>();
  bands_fit_into_shared_memory<Fp32Math>();
  smaller_gpus_get_smaller_bands();
  a_bias_has_its_squares();
  layers_share_a_launch_while_they_fit();
  empty_layers_start_nothing_or_write_zeros();
  grids_are_empty_or_possible();
  normalisation_is_cut_as_its_kernels_need();
  layers_of_the_paper_come_in_vectors();
  layers_of_the_paper_share_a_multiprocessor();
  normalisation_refuses_what_it_cant_count();
  normalisation_of_nothing_starts_nothing();
}
