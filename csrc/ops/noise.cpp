// torch.ops.privimage.random_words and gaussian_integers: check, allocate, dispatch. The key lives
// in the memory of the host, and so do the results.
#include "cpu/noise.h"

#include "ops/key.h"
#include "ops/op.h"

namespace privimage {
namespace {

// Tiles that a thread must have to draw to be worth waking it.
constexpr int64_t kGrain = 64;

using Loop = void (*)(cpu::InstructionSet, const cpu::Draw&, int64_t, int64_t);

Tensor draw(const Tensor& key, int64_t step, int64_t first, int64_t count, double std, Loop loop) {
  STD_TORCH_CHECK(step >= 0 && first >= 0 && count >= 0,
                  "step, first, count: expected no negative number, got ", step, ", ", first, ", ",
                  count);
  cpu::Draw job{{{}, static_cast<uint64_t>(step)}, first, count, std, nullptr};
  read_key(key, job.stream.key);
  Tensor out = torch::stable::new_empty(key, {count}, ScalarType::Long);
  job.out = static_cast<int64_t*>(out.mutable_data_ptr());
  const auto set = cpu::chosen_instruction_set();
  torch::stable::parallel_for(cpu::first_tile(first), cpu::end_tile(first, count), kGrain,
                              [&](int64_t begin, int64_t end) { loop(set, job, begin, end); });
  return out;
}

Tensor random_words(const Tensor& key, int64_t step, int64_t first, int64_t count) {
  return draw(key, step, first, count, 0.0, cpu::random_words);
}

Tensor gaussian_integers(const Tensor& key, int64_t step, int64_t first, int64_t count,
                         double std) {
  STD_TORCH_CHECK(std >= 0.0 && std <= 0x1p58, "std: expected a number in [0, 2^58], got ", std);
  return draw(key, step, first, count, std, cpu::gaussian_integers);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(privimage, library) {
  library.def("random_words(Tensor key, int step, int first, int count) -> Tensor");
  library.def("gaussian_integers(Tensor key, int step, int first, int count, float std) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(privimage, CPU, library) {
  library.impl("random_words", TORCH_BOX(&random_words));
  library.impl("gaussian_integers", TORCH_BOX(&gaussian_integers));
}

}  // namespace privimage
