// The block function against RFC 8439, and the layout of its words in every instruction set.
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/noise.h"
#include "shared/chacha20.h"

using privimage::chacha20_block;
using privimage::cpu::Draw;
using privimage::cpu::InstructionSet;

constexpr InstructionSet kSets[] = {InstructionSet::kBaseline, InstructionSet::kAvx2,
                                    InstructionSet::kAvx512f};

void matches_the_quarter_round_of_section_2_1_1() {
  uint32_t a = 0x11111111, b = 0x01020304, c = 0x9b8d6f43, d = 0x01234567;
  privimage::quarter_round(a, b, c, d);
  CHECK(a == 0xea2a92f4 && b == 0xcb1cf8ce && c == 0x4581472e && d == 0x5881c4bb);
}

// Counter and nonce of the RFC are words 12 and 13 … 15 of the input; ours are named otherwise.
void matches_the_block_of_section_2_3_2() {
  uint32_t key[8];
  for (uint32_t i = 0; i < 8; ++i) key[i] = 0x03020100 + i * 0x04040404;
  const uint64_t block = 1 | uint64_t{0x09000000} << 32;
  const uint64_t step = 0x4a000000;
  const uint32_t expected[16] = {0xe4e7f110, 0x15593bd1, 0x1fdd0f50, 0xc47120a3,
                                 0xc7f4d1c7, 0x0368c033, 0x9aaa2204, 0x4e6cd4c3,
                                 0x466482d2, 0x09aa9f07, 0x05d7c214, 0xa2028bd9,
                                 0xd19c12b5, 0xb94e16de, 0xe883d0cb, 0x4e3c50a2};
  uint32_t words[16];
  chacha20_block(key, block, step, words);
  CHECK(std::memcmp(words, expected, sizeof words) == 0);
}

struct Vector {
  uint8_t first_key_byte, second_key_byte, last_key_byte;
  uint32_t counter;
  uint8_t last_nonce_byte;
  uint32_t first_word, last_word;
};

void matches_the_vectors_of_appendix_a_1() {
  const Vector vectors[] = {{0, 0, 0, 0, 0, 0xade0b876, 0x8665eeb2},
                            {0, 0, 0, 1, 0, 0xbee7079f, 0x6f4d794b},
                            {0, 0, 1, 1, 0, 0x2452eb3a, 0xa0136c00},
                            {0, 0xff, 0, 2, 0, 0xfb4dd572, 0x96f0992e},
                            {0, 0, 0, 0, 2, 0x374dc6c2, 0x6ded1b53}};
  for (const Vector& vector : vectors) {
    uint32_t key[8] = {};
    key[0] = vector.first_key_byte | uint32_t{vector.second_key_byte} << 8;
    key[7] = uint32_t{vector.last_key_byte} << 24;
    uint32_t words[16];
    chacha20_block(key, vector.counter, uint64_t{vector.last_nonce_byte} << 56, words);
    CHECK(words[0] == vector.first_word && words[15] == vector.last_word);
  }
}

Draw draw(uint64_t step, int64_t first, std::vector<int64_t>& out) {
  Draw job{{{1, 2, 3, 4, 5, 6, 7, 8}, step}, first, int64_t(out.size()), 1e9, out.data()};
  return job;
}

void words_are_where_the_layout_says() {
  for (InstructionSet set : kSets) {
    if (!privimage::cpu::machine_has(set)) continue;
    for (int64_t first : {int64_t{0}, int64_t{1}, int64_t{127}, int64_t{128}, int64_t{1} << 40}) {
      std::vector<int64_t> out(300, -1);
      const Draw job = draw(uint64_t{7} << 56 | 5, first, out);
      const int64_t begin = privimage::cpu::first_tile(first);
      const int64_t end = privimage::cpu::end_tile(first, 300);
      // In any split: one tile at a time here.
      for (int64_t tile = begin; tile < end; ++tile) {
        privimage::cpu::random_words(set, job, tile, tile + 1);
      }
      for (int64_t i = first; i < first + 300; ++i) {
        uint32_t words[16];
        chacha20_block(job.stream.key, uint64_t(16 * (i / 128) + i % 16), job.stream.step, words);
        const int64_t slot = i / 16 % 8;
        CHECK(uint64_t(out[i - first]) == (words[2 * slot] | uint64_t(words[2 * slot + 1]) << 32));
      }
    }
  }
}

int main() {
  matches_the_quarter_round_of_section_2_1_1();
  matches_the_block_of_section_2_3_2();
  matches_the_vectors_of_appendix_a_1();
  words_are_where_the_layout_says();
}
