// ChaCha20 (RFC 8439) as a table of random words that can be read at any place.
//
// The table of one key has a row for every step and a column for every index; a word is a pure
// function of (key, step, index), so shards, threads and machines that share a key see the same
// words. The 512-bit input of the block function is filled so:
//
//   words  0 … 3   the constants of RFC 8439
//   words  4 … 11  the key, 256 bits
//   words 12, 13   the number of the block, 64 bits (RFC 8439: the counter, and nonce word 0)
//   words 14, 15   the step, 64 bits (RFC 8439: nonce words 1 and 2)
//
// Different (block, step) are different inputs, so two words share a block only if they have the
// same step and the same block; then they are different parts of its output. The caller gives every
// use of a key steps of its own (privimage/dp/noise.py), and a key to one run alone.
//
// A block is 8 words of 64 bits. Indices go to blocks in tiles of 128, 16 blocks side by side:
//
//   index = 128 tile + 16 slot + lane    is the 64-bit word `slot` of block 16 tile + lane,
//
// so that vectors that compute 16 blocks at once write neighbouring words.
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace privimage {

constexpr int kLanes = 16;
constexpr int kSlots = 8;
constexpr int kTile = kLanes * kSlots;

// Where the words of one step come from.
struct Stream {
  uint32_t key[8];
  uint64_t step;
};

PRIVIMAGE_HOST_DEVICE uint32_t rotate_left(uint32_t value, int bits) {
  return value << bits | value >> (32 - bits);
}

// RFC 8439, 2.1.
PRIVIMAGE_HOST_DEVICE void quarter_round(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  a += b;
  d = rotate_left(d ^ a, 16);
  c += d;
  b = rotate_left(b ^ c, 12);
  a += b;
  d = rotate_left(d ^ a, 8);
  c += d;
  b = rotate_left(b ^ c, 7);
}

// RFC 8439, 2.3: `block` is the counter and the first word of the nonce, `step` the other two.
PRIVIMAGE_HOST_DEVICE void chacha20_block(const uint32_t key[8], uint64_t block, uint64_t step,
                                          uint32_t out[16]) {
  uint32_t input[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
  for (int i = 0; i < 8; ++i) input[4 + i] = key[i];
  input[12] = static_cast<uint32_t>(block);
  input[13] = static_cast<uint32_t>(block >> 32);
  input[14] = static_cast<uint32_t>(step);
  input[15] = static_cast<uint32_t>(step >> 32);
  uint32_t x[16];
  for (int i = 0; i < 16; ++i) x[i] = input[i];
  PRIVIMAGE_UNROLL
  for (int round = 0; round < 20; round += 2) {
    quarter_round(x[0], x[4], x[8], x[12]);
    quarter_round(x[1], x[5], x[9], x[13]);
    quarter_round(x[2], x[6], x[10], x[14]);
    quarter_round(x[3], x[7], x[11], x[15]);
    quarter_round(x[0], x[5], x[10], x[15]);
    quarter_round(x[1], x[6], x[11], x[12]);
    quarter_round(x[2], x[7], x[8], x[13]);
    quarter_round(x[3], x[4], x[9], x[14]);
  }
  for (int i = 0; i < 16; ++i) out[i] = x[i] + input[i];
}

}  // namespace privimage
