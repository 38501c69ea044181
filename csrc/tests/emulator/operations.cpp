// What a warp does together, as the PTX ISA defines it: group g = lane / 4, member t = lane % 4.
#include <algorithm>
#include <cstring>

#include "tests/emulator/block.h"

namespace privimage::emulator {
namespace {

template <typename Arguments>
Arguments& of(void* const* arguments, int lane) {
  return *static_cast<Arguments*>(arguments[lane]);
}

void shuffle_xor(Machine& machine, int, void* const* arguments) {
  constexpr int64_t kMost = 8;
  uint8_t values[kLanes][kMost];
  const ShuffleArguments first = of<ShuffleArguments>(arguments, 0);
  if (first.bytes > kMost || first.mask <= 0 || first.mask >= kLanes) {
    machine.fail("shuffle: at most 8 bytes, a mask from 1 to 31");
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const ShuffleArguments& own = of<ShuffleArguments>(arguments, lane);
    if (own.mask != first.mask || own.bytes != first.bytes) {
      machine.fail("shuffle: the lanes call it with different masks or types");
    }
    std::memcpy(values[lane], own.value, own.bytes);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const ShuffleArguments& own = of<ShuffleArguments>(arguments, lane);
    std::memcpy(own.value, values[lane ^ own.mask], own.bytes);
  }
}

// Eight rows of 16 bytes go through the banks at once, as far as they lie in different ones.
int64_t wavefronts(const int64_t (&offsets)[8]) {
  int64_t most = 0;
  for (int i = 0; i < 8; ++i) {
    int64_t distinct = 0;
    for (int j = 0; j < 8; ++j) {
      const bool same_banks = offsets[j] / 16 % 8 == offsets[i] / 16 % 8;
      const bool repeated = std::find(offsets, offsets + j, offsets[j]) != offsets + j;
      distinct += same_banks && !repeated;
    }
    most = std::max(most, distinct);
  }
  return most;
}

// Lane 8 m + r brings the address of row r of matrix m, and gets (2 t, g) and (2 t + 1, g) of each.
void load_transposed(Machine& machine, int warp, void* const* arguments) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t values[8][8];
    int64_t offsets[8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * matrix + row;
      offsets[row] = of<LoadArguments>(arguments, lane).offset;
      std::memcpy(values[row], machine.read(warp * kLanes + lane, offsets[row], 16), 16);
    }
    machine.counters.matrices += 1;
    machine.counters.wavefronts += wavefronts(offsets);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int group = lane / 4, member = lane % 4;
      of<LoadArguments>(arguments, lane).to[matrix] =
          values[2 * member][group] | uint32_t{values[2 * member + 1][group]} << 16;
    }
  }
}

float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// sum += a b for a [16, depth] and b [depth, 8] that the caller has unpacked.
template <int kDepth>
void multiply(Machine& machine, const float (&a)[16][kDepth], const float (&b)[kDepth][8],
              void* const* arguments) {
  for (int lane = 0; lane < kLanes; ++lane) {
    float* sum = of<MultiplyArguments>(arguments, lane).sum;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < kDepth; ++k) sum[i] += a[row][k] * b[k][column];
    }
  }
  machine.counters.products += 1;
}

// a: registers (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), two values each; b: (2t, g) and
// (2t + 8, g), two values each.
void multiply_add(Machine& machine, int, void* const* arguments) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MultiplyArguments& own = of<MultiplyArguments>(arguments, lane);
    const int group = lane / 4, member = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const int shift = half == 0 ? 16 : 0;  // bits of the value, moved to a float's upper half
      const auto value = [shift](uint32_t pair) { return of_bits(pair << shift & 0xffff0000u); };
      for (int i = 0; i < 4; ++i) {
        a[group + 8 * (i % 2)][2 * member + half + 8 * (i / 2)] = value(own.a[i]);
      }
      for (int i = 0; i < 2; ++i) b[2 * member + half + 8 * i][group] = value(own.b[i]);
    }
  }
  multiply(machine, a, b, arguments);
}

// a: registers (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g) and (t + 4, g). The lower
// 13 bits of a float are not looked at.
void multiply_add_tf32(Machine& machine, int, void* const* arguments) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MultiplyArguments& own = of<MultiplyArguments>(arguments, lane);
    const int group = lane / 4, member = lane % 4;
    const auto value = [](uint32_t bits) { return of_bits(bits & 0xffffe000u); };
    for (int i = 0; i < 4; ++i) a[group + 8 * (i % 2)][member + 4 * (i / 2)] = value(own.a[i]);
    for (int i = 0; i < 2; ++i) b[member + 4 * i][group] = value(own.b[i]);
  }
  multiply(machine, a, b, arguments);
}

}  // namespace

const Operation kShuffleXor{"shuffle_xor", shuffle_xor};
const Operation kLoadTransposed{"load_transposed", load_transposed};
const Operation kMultiplyAdd{"multiply_add", multiply_add};
const Operation kMultiplyAddTf32{"multiply_add_tf32", multiply_add_tf32};

}  // namespace privimage::emulator
