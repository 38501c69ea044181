// What the host works out before a kernel starts: grids, shared memory, sizes beyond 32 bits.
#include <random>

#include "check.h"
#include "kernels/group_norm_plan.h"

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
  CHECK(plan.partials_at <= plan.totals_at && plan.totals_at <= plan.groups_at);
  CHECK(plan.groups_at <= plan.shared_bytes && plan.totals_at % 8 == 0);
  CHECK(cuda::group_norm_launch(shape, plan).possible());
  CHECK(plan.vectors || plan.array_bytes == 0);
  if (!plan.vectors) return;
  CHECK(aligned && sizeof(Scalar) <= 4);
  const int64_t width = shape.channels / shape.groups;
  CHECK((shape.channels_last ? plan.slab_groups * width : shape.pixels) % kVector == 0);
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
  const GroupNormShape common{64, 8, 64, 32 * 32, 16, true, true};
  const GroupNormPlan plan = cuda::plan_group_norm<Bfloat16>(common, 1, true);
  CHECK(plan.slab_groups == 8 && plan.slabs == 2 && plan.shared_bytes <= 75 * 1024);
  // Backwards, narrower slabs keep two blocks on a multiprocessor.
  CHECK(cuda::plan_group_norm<Bfloat16>(common, 2, true).slab_groups == 4);
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

int main() {
  grids_are_empty_or_possible();
  normalisation_is_cut_as_its_kernels_need();
  layers_of_the_paper_come_in_vectors();
  normalisation_refuses_what_it_cant_count();
  normalisation_of_nothing_starts_nothing();
}
