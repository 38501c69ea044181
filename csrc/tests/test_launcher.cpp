// The launcher, with a runtime in place of CUDA's (tests/runtime): what it asks of CUDA, and what
// becomes of errors.
#include "check.h"
#include "kernels/launch.cuh"

using namespace privimage::cuda;

struct Job {
  int number;
};

void kernel(Job) {}

constexpr int64_t kSmall = 60 * 1024, kLarge = 100 * 1024;

int launch_with(int64_t shared_bytes) {
  return launch(kernel, {7, 5, 96, shared_bytes}, Job{3}, nullptr);
}

void a_launch_is_what_was_asked_for() {
  const auto stream = reinterpret_cast<cudaStream_t>(&runtime::launches);
  const Job job{3};
  CHECK(launch(kernel, {7, 5, 96, kLarge}, job, stream) == 0);
  const runtime::Launched& made = runtime::launched;
  CHECK(made.blocks.x == 7 && made.blocks.y == 5 && made.blocks.z == 1);
  CHECK(made.threads.x == 96 && made.threads.y == 1 && made.threads.z == 1);
  CHECK(made.shared_bytes == kLarge && made.stream == stream);
  CHECK(static_cast<Job*>(made.argument)->number == 3);
}

void what_is_empty_or_too_large_is_not_launched() {
  const int before = runtime::launches;
  CHECK(launch(kernel, {0, 5, 96, 0}, Job{}, nullptr) == 0);
  CHECK(launch(kernel, {int64_t{1} << 31, 1, 96, 0}, Job{}, nullptr) == kTooLarge);
  CHECK(launch_with(kMostSharedBytes + 1) == kTooLarge);
  runtime::shared_bytes_of_a_block = 99 * 1024;
  CHECK(launch_with(kLarge) == kTooLarge && launch_with(99 * 1024) == 0);
  runtime::shared_bytes_of_a_block = 227 * 1024;
  CHECK(runtime::launches == before + 1);
}

// The limit is the kernel's: a thread's small launch must not take it from under another's large
// one, nor from a graph that has captured that.
void a_small_launch_lowers_no_limit() {
  CHECK(launch_with(kLarge) == 0 && launch_with(kSmall) == 0);
  CHECK(runtime::limits.at(reinterpret_cast<const void*>(kernel)) >= kLarge);
  runtime::meanwhile = [] { CHECK(launch_with(kSmall) == 0); };
  CHECK(launch_with(kLarge) == 0);
}

// A GPU that this build has no code for: said once, and not again to whoever launches next.
void an_error_is_returned_and_taken_back() {
  runtime::has_image = false;
  for (const int64_t bytes : {int64_t{0}, kLarge}) {
    CHECK(launch_with(bytes) == kNoImage);
    CHECK(cudaGetLastError() == cudaSuccess);
  }
  runtime::has_image = true;
  CHECK(launch_with(kLarge) == 0);
}

int main() {
  a_launch_is_what_was_asked_for();
  what_is_empty_or_too_large_is_not_launched();
  a_small_launch_lowers_no_limit();
  an_error_is_returned_and_taken_back();
}
