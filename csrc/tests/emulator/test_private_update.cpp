// The CUDA kernels of the last pass of a private step, emulated: bit by bit what the CPU does, and
// fresh noise whenever the same launch is repeated.
#include <cmath>
#include <set>
#include <vector>

#include "cpu/private_update.h"
#include "kernels/private_update.cuh"
#include "tests/emulator/guarded.h"
#include "tests/emulator/random.h"

namespace privimage {
namespace {

using cpu::InstructionSet;
using cuda::Block;
using emulator::Guarded;
using emulator::Random;

constexpr UpdateRule kRule = {0x1p31, 0x1p-33, 0.999, 0.9, 0.1, 0.999, 1.7, 1e-8, 1e-3, 0.01};
constexpr Stream kStream = {{1, 2, 3, 4, 5, 6, 7, 8}, 77};

struct State {
  std::vector<int64_t> sum;
  std::vector<float> parameters, momentum, second, average;

  explicit State(int64_t count) : sum(count) {
    Random random{uint64_t(count)};
    for (int64_t& value : sum) value = int64_t(random.next()) - (int64_t{1} << 30);
    for (auto* values : {&parameters, &momentum, &second, &average}) {
      values->resize(count);
      for (float& value : *values) value = random.fraction();
    }
    for (float& value : second) value *= value;
  }
};

// The state in the memory of a device, and a launch's arguments, which never change.
struct Device {
  Guarded<int64_t> sum;
  Guarded<float> parameters, momentum, second, average;
  Guarded<int64_t> step;
  Guarded<double> numbers;
  cuda::UpdateOnGpu job;

  Device(const State& from, int64_t first, bool adam, bool averaged, const UpdateRule& rule)
      : sum(from.sum),
        parameters(from.parameters),
        momentum(from.momentum),
        second(from.second),
        average(from.average),
        step(std::vector<int64_t>{int64_t(kStream.step)}),
        numbers(kStepNumbers) {
    set_numbers(rule);
    job.update = {sum.data(),
                  first,
                  sum.size(),
                  parameters.data(),
                  momentum.data(),
                  adam ? second.data() : nullptr,
                  averaged ? average.data() : nullptr,
                  {rule.noise_std, rule.scale, 0, 0, 0, 0, 0, 0, 0, 0}};
    for (int i = 0; i < 8; ++i) job.key[i] = kStream.key[i];
    job.step = step.data();
    job.numbers = numbers.data();
  }

  // What the host does before a step.
  void set_numbers(const UpdateRule& rule) {
    const double all[] = {rule.keep,         rule.momentum_decay,    rule.gradient_weight,
                          rule.second_decay, rule.second_correction, rule.epsilon,
                          rule.step_size,    rule.average_weight};
    for (int i = 0; i < kStepNumbers; ++i) numbers.data()[i] = all[i];
  }

  // What the launcher queues, and so what a captured graph replays.
  template <bool kAdam, bool kAverage>
  void replay(uint64_t seed) {
    const cuda::LaunchShape shape = cuda::update_launch(job.update);
    CHECK(shape.empty() || shape.possible());
    emulator::run(
        {shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, seed},
        [&](const Block& block) { cuda::update_parameters<kAdam, kAverage>(block, job); });
    emulator::run({1, 1, 32, 0, seed}, [&](const Block& block) { cuda::count_step(block, job); });
  }
};

template <bool kAdam, bool kAverage>
void equals_the_cpu(int64_t first, int64_t count, uint64_t seed) {
  State state(count);
  Device device(state, first, kAdam, kAverage, kRule);
  device.replay<kAdam, kAverage>(seed);
  const cpu::UpdateOnCpu job{
      {state.sum.data(), first, count, state.parameters.data(), state.momentum.data(),
       kAdam ? state.second.data() : nullptr, kAverage ? state.average.data() : nullptr, kRule},
      kStream};
  cpu::private_update(InstructionSet::kBaseline, job, cpu::first_tile(first),
                      cpu::end_tile(first, count));
  for (int64_t i = 0; i < count; ++i) {
    CHECK(device.sum[i] == state.sum[i] && device.parameters[i] == state.parameters[i]);
    CHECK(device.momentum[i] == state.momentum[i] && device.second[i] == state.second[i]);
    CHECK(device.average[i] == state.average[i]);
  }
  CHECK(device.step[0] == int64_t(kStream.step) + 1);
}

void every_range_equals_the_cpu() {
  uint64_t seed = 0;
  for (int64_t first : {int64_t{0}, int64_t{1}, int64_t{200}, (int64_t{1} << 40) + 127}) {
    for (int64_t count : {0, 1, 15, 127, 129, 5001}) {
      equals_the_cpu<true, true>(first, count, ++seed);
      equals_the_cpu<true, false>(first, count, ++seed);
      equals_the_cpu<false, true>(first, count, ++seed);
      equals_the_cpu<false, false>(first, count, ++seed);
    }
  }
}

// The same launch three times: the integers that the CPU draws at three steps, none of them twice.
void replays_draw_fresh_noise() {
  constexpr int64_t kCount = 700, kFirst = 37;
  UpdateRule rule{};
  rule.noise_std = 0x1p18;  // few enough bits for momentum to hold an integer exactly
  rule.scale = rule.gradient_weight = 1.0;
  State zero(kCount);
  zero.sum.assign(kCount, 0);
  Device device(zero, kFirst, false, false, rule);
  std::set<std::vector<int64_t>> seen;
  for (int replay = 0; replay < 3; ++replay) {
    device.replay<false, false>(replay);
    std::vector<int64_t> drawn, expected(kCount);
    for (int64_t i = 0; i < kCount; ++i) drawn.push_back(int64_t(device.momentum[i]));
    Stream stream = kStream;
    stream.step += replay;
    const cpu::Draw draw{stream, kFirst, kCount, rule.noise_std, expected.data()};
    cpu::gaussian_integers(InstructionSet::kBaseline, draw, cpu::first_tile(kFirst),
                           cpu::end_tile(kFirst, kCount));
    CHECK(drawn == expected);
    seen.insert(drawn);
  }
  CHECK(seen.size() == 3);
}

// Adam's bias correction, a learning rate that falls, an average that warms up: the same launch
// takes each step's own.
void replays_take_the_step_s_numbers() {
  constexpr int64_t kCount = 300;
  State state(kCount);
  Device device(state, 5, true, true, kRule);
  for (int replay = 0; replay < 3; ++replay) {
    UpdateRule rule = kRule;
    rule.second_correction = 1.0 / std::sqrt(1.0 - std::pow(0.999, replay + 1));
    rule.step_size = 1e-3 / (replay + 1);
    rule.average_weight = 1.0 / (replay + 2);
    device.set_numbers(rule);
    device.replay<true, true>(replay);
    const cpu::UpdateOnCpu job{
        {state.sum.data(), 5, kCount, state.parameters.data(), state.momentum.data(),
         state.second.data(), state.average.data(), rule},
        {{1, 2, 3, 4, 5, 6, 7, 8}, kStream.step + replay}};
    cpu::private_update(InstructionSet::kBaseline, job, 0, cpu::end_tile(5, kCount));
    for (int64_t i = 0; i < kCount; ++i) {
      CHECK(device.parameters[i] == state.parameters[i] && device.average[i] == state.average[i]);
    }
  }
}

void grids_of_many_parameters() {
  const auto blocks = [](int64_t first, int64_t count) {
    return cuda::update_launch({nullptr, first, count, nullptr, nullptr, nullptr, nullptr, kRule})
        .blocks_x;
  };
  CHECK(blocks(0, 0) == 0 && blocks(INT64_MAX - 200, 0) == 0);
  CHECK(blocks(0, 2048) == 1 && blocks(0, 2049) == 2 && blocks(127, 2048) == 2);
  CHECK(blocks(int64_t{1} << 62, int64_t{1} << 40) == int64_t{1} << 29);
}

}  // namespace
}  // namespace privimage

int main() {
  privimage::every_range_equals_the_cpu();
  privimage::replays_draw_fresh_noise();
  privimage::replays_take_the_step_s_numbers();
  privimage::grids_of_many_parameters();
}
