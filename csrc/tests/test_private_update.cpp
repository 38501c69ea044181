// The fused pass on the CPU against the definition one parameter at a time, in any split and with
// every instruction set, and against what one GPU thread does.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/private_update.h"

using privimage::PrivateUpdate;
using privimage::UpdateRule;
using privimage::cpu::InstructionSet;
using privimage::cpu::UpdateOnCpu;

constexpr UpdateRule kRule = {0x1p31, 0x1p-33, 0.999, 0.9, 0.1, 0.999, 1.7, 1e-8, 1e-3, 0.01};
constexpr privimage::Stream kStream = {{1, 2, 3, 4, 5, 6, 7, 8}, 77};

struct Arrays {
  std::vector<int64_t> sum;
  std::vector<float> parameters, momentum, second, average;

  explicit Arrays(int64_t count) : sum(count) {
    std::mt19937_64 random(count);
    std::normal_distribution<float> normal;
    for (int64_t& value : sum) value = int64_t(random()) >> 30;
    for (auto* values : {&parameters, &momentum, &second, &average}) {
      values->resize(count);
      for (float& value : *values) value = normal(random);
    }
    for (float& value : second) value *= value;
  }

  PrivateUpdate job(int64_t first, bool adam, bool averaged) {
    return {sum.data(),
            first,
            int64_t(sum.size()),
            parameters.data(),
            momentum.data(),
            adam ? second.data() : nullptr,
            averaged ? average.data() : nullptr,
            kRule};
  }

  bool operator==(const Arrays& other) const {
    return sum == other.sum && parameters == other.parameters && momentum == other.momentum &&
           second == other.second && average == other.average;
  }
};

// The noise of one index by itself, whatever the tiles are.
int64_t noise(int64_t index) {
  int64_t out;
  const privimage::cpu::Draw job{kStream, index, 1, kRule.noise_std, &out};
  const int64_t tile = privimage::cpu::first_tile(index);
  privimage::cpu::gaussian_integers(InstructionSet::kBaseline, job, tile, tile + 1);
  return out;
}

void by_definition(const PrivateUpdate& job) {
  for (int64_t i = 0; i < job.count; ++i) {
    const double released = double(job.clipped_sum[i] + noise(job.first_index + i));
    const float gradient = float(released * kRule.scale);
    job.momentum[i] = 0.9f * job.momentum[i] + 0.1f * gradient;
    float direction = job.momentum[i];
    if (job.second_moment != nullptr) {
      const float squares = gradient * gradient;
      job.second_moment[i] = 0.999f * job.second_moment[i] + float(1.0 - 0.999) * squares;
      direction /= 1.7f * std::sqrt(job.second_moment[i]) + 1e-8f;
    }
    job.parameters[i] = 0.999f * job.parameters[i] - 1e-3f * direction;
    if (job.average != nullptr) {
      job.average[i] += 0.01f * (job.parameters[i] - job.average[i]);
    }
  }
}

template <bool kAdam, bool kAverage>
void as_the_gpu_does(const PrivateUpdate& job) {
  const int64_t begin = job.first_index / privimage::kTile * privimage::kLanes;
  // A few threads more than there are blocks, as in a grid of whole groups.
  for (int64_t block = begin; block < begin + job.count + 300; ++block) {
    privimage::update_block<kAdam, kAverage>(job, kStream.key, kStream.step, block);
  }
}

void on_the_gpu(const PrivateUpdate& job, bool adam, bool averaged) {
  if (adam && averaged) return as_the_gpu_does<true, true>(job);
  if (adam) return as_the_gpu_does<true, false>(job);
  if (averaged) return as_the_gpu_does<false, true>(job);
  as_the_gpu_does<false, false>(job);
}

void every_way_gives_the_same(int64_t first, int64_t count, bool adam, bool averaged) {
  Arrays expected(count);
  by_definition(expected.job(first, adam, averaged));
  const int64_t begin = privimage::cpu::first_tile(first);
  const int64_t end = privimage::cpu::end_tile(first, count);
  for (InstructionSet set :
       {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512f}) {
    if (!privimage::cpu::machine_has(set)) continue;
    for (int64_t split : {int64_t{1}, int64_t{3}, int64_t{1000}}) {
      Arrays found(count);
      const UpdateOnCpu job{found.job(first, adam, averaged), kStream};
      for (int64_t tile = begin; tile < end; tile += split) {
        privimage::cpu::private_update(set, job, tile, std::min(tile + split, end));
      }
      CHECK(found == expected);
    }
  }
  Arrays found(count);
  on_the_gpu(found.job(first, adam, averaged), adam, averaged);
  CHECK(found == expected);
}

// Two shards of the parameters, each by itself, are the whole.
void shards_are_the_whole() {
  Arrays whole(1000), sharded(1000);
  const UpdateOnCpu all{whole.job(0, true, true), kStream};
  privimage::cpu::private_update(InstructionSet::kBaseline, all, 0, 8);
  for (int64_t first : {0, 333}) {
    PrivateUpdate shard = sharded.job(first, true, true);
    shard.count = first == 0 ? 333 : 667;
    shard.clipped_sum += first;
    for (float** values :
         {&shard.parameters, &shard.momentum, &shard.second_moment, &shard.average}) {
      *values += first;
    }
    const int64_t begin = privimage::cpu::first_tile(first);
    const int64_t end = privimage::cpu::end_tile(first, shard.count);
    privimage::cpu::private_update(InstructionSet::kBaseline, {shard, kStream}, begin, end);
  }
  CHECK(sharded == whole);
}

int main() {
  for (int64_t first : {int64_t{0}, int64_t{1}, int64_t{200}, (int64_t{1} << 40) + 127}) {
    for (int64_t count : {0, 1, 15, 127, 128, 129, 1001}) {
      for (bool adam : {false, true}) {
        for (bool averaged : {false, true}) every_way_gives_the_same(first, count, adam, averaged);
      }
    }
  }
  shards_are_the_whole();
}
