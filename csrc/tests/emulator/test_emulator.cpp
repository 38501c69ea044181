// The emulator itself: its fragments multiply matrices, and each kind of mistake is reported.
#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/block.h"
#include "tests/emulator/guarded.h"

namespace privimage {
namespace {

using cuda::Block;
using cuda::Shared;
using emulator::Access;
using emulator::Fault;
using emulator::Guarded;
using emulator::Traffic;
using Kernel = void (*)(const Block& block);

constexpr int kSeeds = 8;
const Bfloat16* zeros = nullptr;  // 16 bytes that kernels may copy

// Every seed must end in a fault that says `words`.
void fails(int threads, const char* words, Kernel kernel) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    bool failed = false;
    try {
      emulator::run({1, 1, threads, 4096, seed}, kernel);
    } catch (const Fault& fault) {
      failed = std::strstr(fault.what(), words) != nullptr;
      if (!failed) std::fprintf(stderr, "%s\n", fault.what());
    }
    if (!failed) std::fprintf(stderr, "seed %d: expected a fault with: %s\n", int(seed), words);
    CHECK(failed);
  }
}

void passes(int threads, Kernel kernel) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::run({2, 3, threads, 4096, seed}, kernel);
  }
}

// ------------------------------------------------------------------------------- what must not be

void barriers_that_only_some_reach_are_reported() {
  fails(64, "deadlock: 32 of 64", [](const Block& block) {
    if (block.warp() == 0) block.barrier();
  });
  fails(32, "diverges", [](const Block& block) {
    if (block.lane() < 7) block.barrier();
  });
}

void lanes_that_part_are_reported() {
  fails(64, "diverges", [](const Block& block) {
    if (block.thread() != 40) block.shuffle_xor(1.0f, 1);
  });
  fails(32, "shuffle_xor, lane", [](const Block& block) {
    float sum[4] = {};
    const uint32_t a[4] = {};
    if (block.lane() < 16) {
      block.shuffle_xor(1.0f, 1);
    } else {
      block.multiply_add(sum, a, 0, 0);
    }
  });
  fails(32, "different masks",
        [](const Block& block) { block.shuffle_xor(1, block.lane() < 16 ? 1 : 2); });
}

void memory_of_others_is_reported() {
  static int32_t values[4] = {};
  const auto begin = reinterpret_cast<uintptr_t>(values);
  const auto reading = [](int first, int last) {
    return [=](const Block& block) {
      for (int i = first; i <= last; ++i) block.load(&values[i]);
    };
  };
  const emulator::Pieces known{{begin + 4, begin + 12}, {begin + 1000, begin + 2000}};
  emulator::run({1, 1, 32, 0, 0, &known}, reading(1, 2));
  for (int other : {0, 3}) {
    bool failed = false;
    try {
      emulator::run({1, 1, 32, 0, 0, &known}, reading(std::min(other, 1), std::max(other, 1)));
    } catch (const Fault& fault) {
      failed = std::strstr(fault.what(), "4 bytes that are not the device's") != nullptr;
    }
    CHECK(failed);
  }
}

void races_are_reported_in_either_order() {
  fails(64, "race", [](const Block& block) {
    const Shared<float> shared = block.shared<float>(0, 64);
    shared.store(block.thread(), 1.0f);
    shared.load(63 - block.thread());
  });
  fails(64, "race", [](const Block& block) {
    const Shared<float> shared = block.shared<float>(0, 1);
    shared.store(0, 1.0f);
  });
  passes(64, [](const Block& block) {
    const Shared<float> shared = block.shared<float>(0, 64);
    shared.store(block.thread(), 1.0f);
    block.barrier();
    CHECK(shared.load(63 - block.thread()) == 1.0f);
    block.barrier();
    shared.store(63 - block.thread(), 2.0f);
  });
}

void accesses_outside_of_shared_memory_are_reported() {
  fails(32, "elements 64 to 65 of 64",
        [](const Block& block) { block.shared<float>(0, 64).load(64); });
  fails(32, "elements -1 to 0",
        [](const Block& block) { block.shared<float>(64, 64).store(-1, 0.0f); });
  fails(32, "ends beyond", [](const Block& block) { block.shared<double>(8, 512); });
  fails(32, "not aligned", [](const Block& block) { block.shared<double>(4, 8).load(0); });
  fails(32, "elements 60 to 68 of 64", [](const Block& block) {
    uint32_t to[4];
    block.load_transposed(to, block.shared<Bfloat16>(0, 64), 60);
  });
}

void copies_that_are_read_too_early_are_reported() {
  fails(32, "has not brought yet", [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 256);
    block.copy16(shared, 8 * block.lane(), zeros, 16);
    block.commit();
    block.wait<1>();
    shared.load(8 * block.lane());
  });
  fails(32, "race", [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 256);
    block.copy16(shared, 8 * block.lane(), zeros, 16);
    block.commit();
    block.wait<0>();
    shared.load(8 * (31 - block.lane()));
  });
  fails(32, "under way", [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 256);
    block.copy16(shared, 8 * block.lane(), zeros, 16);
    shared.store(8 * block.lane(), {});
  });
  // The reader or the copy may come first; both orders are wrong, and name the copying thread.
  fails(64, "thread 32 (warp 1)", [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 8);
    if (block.warp() == 0) shared.load(0);
    if (block.thread() == 32) block.copy16(shared, 0, zeros, 16);
  });
}

void copies_that_nobody_waits_for_are_reported() {
  fails(32, "never waited", [](const Block& block) {
    block.copy16(block.shared<Bfloat16>(0, 256), 8 * block.lane(), zeros, 16);
    block.commit();
  });
  fails(32, "uncommitted", [](const Block& block) {
    block.copy16(block.shared<Bfloat16>(0, 256), 8 * block.lane(), zeros, 16);
  });
  fails(32, "not aligned to 16", [](const Block& block) {
    block.copy16(block.shared<Bfloat16>(0, 256), 8 * block.lane(), zeros + 1, 8);
  });
}

void shared_memory_starts_as_nan_in_every_block() {
  passes(32, [](const Block& block) {
    const Shared<float> shared = block.shared<float>(0, 32);
    CHECK(std::isnan(shared.load(block.thread())));
    shared.store(block.thread(), 1.0f);
  });
}

// ------------------------------------------------------------------------------- what it computes

void copies_land_and_zeros_fill_the_rest() {
  static Guarded<Bfloat16> source({{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}});
  passes(64, [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 512);
    const int bytes = block.thread() % 9 * 2;
    block.copy16(shared, 8 * block.thread(), source.data(), bytes);
    block.commit();
    block.wait<0>();
    block.barrier();
    const int other = 63 - block.thread();
    for (int i = 0; i < 8; ++i) {
      CHECK(shared.load(8 * other + i).bits == (2 * i < other % 9 * 2 ? i + 1 : 0));
    }
  });
}

void shuffles_exchange_values() {
  passes(64, [](const Block& block) {
    CHECK(block.shuffle_xor(double(block.lane()), 5) == (block.lane() ^ 5));
  });
}

// a [depth, 16] and b [depth, 8] lie in shared memory, depth first, as load_transposed wants them.
void bf16_fragments_multiply_matrices() {
  static float products[16][8];
  static float values[16][24];
  std::mt19937 random(1);
  for (auto& row : values) {
    for (float& value : row) value = int(random() % 33) - 16;
  }
  emulator::run({1, 1, 32, 4096, 3}, [](const Block& block) {
    const Shared<Bfloat16> shared = block.shared<Bfloat16>(0, 16 * 40);
    for (int i = block.lane(); i < 16 * 24; i += 32) {
      shared.store(i / 24 * 40 + i % 24, to_bfloat16(values[i / 24][i % 24]));
    }
    block.barrier();
    const int lane = block.lane();
    uint32_t a[4], b[4];
    block.load_transposed(a, shared, (lane / 16 * 8 + lane % 8) * 40 + lane / 8 % 2 * 8);
    block.load_transposed(b, shared, (lane / 8 % 2 * 8 + lane % 8) * 40 + 16);
    float sum[4] = {};
    block.multiply_add(sum, a, b[0], b[1]);
    for (int i = 0; i < 4; ++i) products[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = sum[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0.0f;
      for (int k = 0; k < 16; ++k) expected += values[k][row] * values[k][16 + column];
      CHECK(products[row][column] == expected);
    }
  }
}

void tf32_fragments_multiply_matrices() {
  static float products[16][8];
  const auto a = [](int row, int k) { return float(row * 3 - k * 2 - 9); };
  const auto b = [](int k, int column) { return float(5 * k - column * 4); };
  emulator::run({1, 1, 32, 0, 3}, [&](const Block& block) {
    const int group = block.lane() / 4, member = block.lane() % 4;
    uint32_t left[4], right[2];
    for (int i = 0; i < 4; ++i) {
      const float value = a(group + i % 2 * 8, member + i / 2 * 4);
      std::memcpy(&left[i], &value, sizeof value);
      left[i] |= 0xfff;  // below what tf32 keeps
    }
    for (int i = 0; i < 2; ++i) {
      const float value = b(member + i * 4, group);
      std::memcpy(&right[i], &value, sizeof value);
    }
    float sum[4] = {};
    block.multiply_add_tf32(sum, left, right[0], right[1]);
    for (int i = 0; i < 4; ++i) products[group + i / 2 * 8][member * 2 + i % 2] = sum[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 0.0f;
      for (int k = 0; k < 8; ++k) expected += a(row, k) * b(k, column);
      CHECK(products[row][column] == expected);
    }
  }
}

template <int kPitch>
double wavefronts_a_matrix() {
  const auto counters = emulator::run({1, 1, 32, 16384, 0}, [](const Block& block) {
    uint32_t to[4];
    block.load_transposed(to, block.shared<Bfloat16>(0, 32 * kPitch), block.lane() * kPitch);
  });
  return double(counters.wavefronts) / double(counters.matrices);
}

void bank_conflicts_are_counted() {
  CHECK(wavefronts_a_matrix<64>() == 8.0);
  CHECK(wavefronts_a_matrix<64 + 8>() == 1.0);
  CHECK(wavefronts_a_matrix<32 + 8>() == 1.0);
  CHECK(wavefronts_a_matrix<32>() == 4.0);
}

// What a warp's kernel does with memory that starts at the beginning of a sector.
template <typename Body>
Traffic traffic_of(Access access, Body body) {
  alignas(128) static float memory[32 * 32];
  const auto counters = emulator::run(
      {1, 1, 32, 8192, 0}, [&](const Block& block) { body(block, block.lane(), memory); });
  return counters.traffic.of(access);
}

void is_traffic(const Traffic& found, int instructions, int taken, int least, int lines) {
  CHECK(found.instructions == instructions && found.taken == taken);
  CHECK(found.least == least && found.lines == lines);
}

void sectors_of_global_memory_are_counted() {
  const auto stores = [](int first, int pitch) {
    return traffic_of(Access::kGlobalStore, [=](const Block& block, int lane, float* memory) {
      block.store(memory + first + pitch * lane, 1.0f);
    });
  };
  is_traffic(stores(0, 1), 1, 4, 4, 1);
  is_traffic(stores(3, 1), 1, 5, 4, 2);
  is_traffic(stores(0, 9), 1, 32, 4, 9);
  is_traffic(stores(5, 0), 1, 1, 1, 1);
  using Four = cuda::Vector<float, 4>;
  is_traffic(traffic_of(Access::kGlobalLoad,
                        [](const Block& block, int lane, const float* memory) {
                          block.load(reinterpret_cast<const Four*>(memory) + lane);
                        }),
             1, 16, 16, 4);
  is_traffic(traffic_of(Access::kGlobalAdd,
                        [](const Block& block, int lane, float* memory) {
                          block.add(reinterpret_cast<int64_t*>(memory) + 2 * lane, 1);
                        }),
             1, 16, 8, 4);
  // A copy in the background reads as far as it brings.
  is_traffic(traffic_of(Access::kGlobalLoad,
                        [](const Block& block, int lane, const float* memory) {
                          block.copy16(block.shared<float>(0, 128), 4 * lane, memory,
                                       lane % 2 * 16);
                          block.commit();
                          block.wait<0>();
                        }),
             1, 1, 1, 1);
}

void passes_over_the_banks_are_counted() {
  const auto loads = [](int pitch) {
    return traffic_of(Access::kSharedLoad, [=](const Block& block, int lane, float*) {
      block.shared<float>(0, 1024).load(pitch * lane);
    });
  };
  is_traffic(loads(0), 1, 1, 1, 0);
  is_traffic(loads(1), 1, 1, 1, 0);
  is_traffic(loads(2), 1, 2, 1, 0);
  is_traffic(loads(9), 1, 1, 1, 0);
  is_traffic(loads(32), 1, 32, 1, 0);
  // Half of a warp fills the banks with 8 bytes a lane, a quarter with 16.
  is_traffic(traffic_of(Access::kSharedLoad,
                        [](const Block& block, int lane, float*) {
                          block.shared<float>(0, 128).load_vector<4>(4 * lane);
                        }),
             1, 4, 4, 0);
  is_traffic(traffic_of(Access::kSharedLoad,
                        [](const Block& block, int lane, float*) {
                          block.shared<float>(0, 256).load_vector<2>(8 * lane);
                        }),
             1, 8, 2, 0);
  // Two lanes of 2 bytes share a word.
  is_traffic(traffic_of(Access::kSharedStore,
                        [](const Block& block, int lane, float*) {
                          block.shared<uint16_t>(0, 32).store(lane, uint16_t{1});
                        }),
             1, 1, 1, 0);
  is_traffic(traffic_of(Access::kSharedStore,
                        [](const Block& block, int lane, float* memory) {
                          block.copy16(block.shared<float>(0, 1024), 32 * lane, memory, 0);
                          block.commit();
                          block.wait<0>();
                        }),
             1, 32, 4, 0);
}

// A line that lanes pass several times is as many instructions, and those that stay away have no
// part in it; what meetings part, or lines, or warps, stays apart.
void lanes_are_put_together_to_instructions() {
  is_traffic(traffic_of(Access::kGlobalStore,
                        [](const Block& block, int lane, float* memory) {
                          for (int i = 0; i < 3; ++i) block.store(memory + 32 * i + lane, 1.0f);
                          if (lane < 8) block.store(memory + 8 * lane, 2.0f);
                          block.store(memory + lane, 3.0f);
                        }),
             5, 24, 17, 6);
  is_traffic(traffic_of(Access::kGlobalStore,
                        [](const Block& block, int lane, float* memory) {
                          for (int i = 0; i < 2; ++i) {
                            if (lane % 2 == i) block.store(memory + lane, 1.0f);
                            block.barrier();
                          }
                        }),
             2, 8, 4, 2);
  static float memory[64];
  const auto counters = emulator::run(
      {1, 1, 64, 0, 0}, [](const Block& block) { block.store(memory + block.thread(), 1.0f); });
  CHECK(counters.traffic.of(Access::kGlobalStore).instructions == 2);
  fails(32, "global memory: an address is not aligned to 8", [](const Block& block) {
    block.load(reinterpret_cast<const cuda::Vector<float, 2>*>(memory + 1));
  });
}

void bfloat16_rounds_to_the_nearest_even() {
  CHECK(to_bfloat16(1.0f).bits == 0x3f80);
  CHECK(to_bfloat16(1.0f + 0x1p-8f).bits == 0x3f80);
  CHECK(to_bfloat16(1.0f + 0x1.8p-7f).bits == 0x3f82);
  CHECK(to_bfloat16(1.0f + 0x1.01p-8f).bits == 0x3f81);
  CHECK(std::isnan(to_float(to_bfloat16(std::nan("")))));
  CHECK(std::isinf(to_float(to_bfloat16(3.4e38f))));
}

}  // namespace
}  // namespace privimage

int main() {
  using namespace privimage;
  static Guarded<Bfloat16> source(std::vector<Bfloat16>(16));
  zeros = source.data();
  barriers_that_only_some_reach_are_reported();
  lanes_that_part_are_reported();
  memory_of_others_is_reported();
  races_are_reported_in_either_order();
  accesses_outside_of_shared_memory_are_reported();
  copies_that_are_read_too_early_are_reported();
  copies_that_nobody_waits_for_are_reported();
  shared_memory_starts_as_nan_in_every_block();
  copies_land_and_zeros_fill_the_rest();
  shuffles_exchange_values();
  bf16_fragments_multiply_matrices();
  tf32_fragments_multiply_matrices();
  bank_conflicts_are_counted();
  sectors_of_global_memory_are_counted();
  passes_over_the_banks_are_counted();
  lanes_are_put_together_to_instructions();
  bfloat16_rounds_to_the_nearest_even();
}
