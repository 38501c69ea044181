// Logarithm, sine, cosine and rounding against long double; extreme words; the same integers from
// every instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/noise.h"
#include "shared/gaussian.h"

using privimage::cpu::Draw;
using privimage::cpu::InstructionSet;

constexpr uint64_t kLargest = std::numeric_limits<uint64_t>::max();
constexpr long double kPi = 3.14159265358979323846264338327950288L;

// |found - exact| in units of the last place of the float64 nearest to `exact`.
double units_off(double found, long double exact) {
  const double nearest = std::fabs(double(exact));
  const double unit = std::nextafter(nearest, INFINITY) - nearest;
  return double(std::fabs(found - exact) / unit);
}

void logarithm_is_nearly_rounded() {
  std::mt19937_64 random(1);
  double worst = 0.0;
  for (int i = 0; i < 1000000; ++i) {
    // All sizes alike, then places near 1 and near the borders of the reduction.
    double u = std::ldexp(1.0 - 0x1p-53 * double(random() >> 11), -int(random() % 65));
    if (i % 4 == 1) u = 1.0 - 0x1p-53 * double(random() % 100000);
    if (i % 4 == 2)
      u = std::ldexp(std::sqrt(0.5) * (1.0 + 1e-12 * double(random() % 100)), -(i % 64));
    if (u < 0x1p-65 || u > 1.0) continue;
    worst = std::max(worst, units_off(privimage::natural_logarithm(u), std::log((long double)u)));
  }
  CHECK(worst < 1.0);
  CHECK(worst > 0.5);
  CHECK(privimage::natural_logarithm(1.0) == 0.0);
  CHECK(units_off(privimage::natural_logarithm(0x1p-65), -65.0L * std::log(2.0L)) < 1.0);
}

void sine_and_cosine_are_nearly_rounded() {
  std::mt19937_64 random(2);
  double worst_sine = 0.0, worst_cosine = 0.0;
  for (int i = 0; i < 1000000; ++i) {
    double t = 0x1p-53 * double(random() >> 11) - 0.5;
    if (i % 4 == 1) t = std::ldexp(t, -int(random() % 60));
    if (i % 4 == 2) t = (i % 8 == 2 ? 0.5 : -0.5) * (1.0 - 0x1p-53 * double(random() % 1000));
    double sine, cosine;
    privimage::quarter_sine_cosine(t, sine, cosine);
    worst_sine = std::max(worst_sine, units_off(sine, std::sin(kPi / 2 * t)));
    worst_cosine = std::max(worst_cosine, units_off(cosine, std::cos(kPi / 2 * t)));
  }
  CHECK(worst_sine < 1.7);
  CHECK(worst_cosine < 1.5);
  CHECK(worst_sine > 0.5 && worst_cosine > 0.5);
}

void conversions_round_once() {
  std::mt19937_64 random(3);
  for (int i = 0; i < 1000000; ++i) {
    const uint64_t value = random() >> random() % 64;
    CHECK(privimage::to_double(uint32_t(value >> 32), uint32_t(value), 0.0) == double(value));
    const int64_t number = int64_t(random()) >> random() % 64;
    CHECK(privimage::signed_to_double(number) == double(number));
    const double real = std::ldexp(double(int64_t(random())), -int(random() % 70)) / 2;
    CHECK(privimage::round_to_integer(real) == int64_t(std::nearbyint(real)));
    const double small = std::fmod(real, 0x1p51);
    CHECK(privimage::round_small_to_integer(small) == int64_t(std::nearbyint(small)));
  }
  CHECK(privimage::to_double(0xffffffff, 0xffffffff, 0.0) == 0x1p64);
  const double ties[] = {0.5, 1.5, 2.5, -0.5, -1.5, 0x1p31 + 0.5, 0x1p32 + 0.5, 0x1p33 + 1.5};
  for (double tie : ties) {
    CHECK(privimage::round_to_integer(tie) == int64_t(std::nearbyint(tie)));
    CHECK(privimage::round_small_to_integer(tie) == int64_t(std::nearbyint(tie)));
  }
  CHECK(privimage::round_to_integer(-0.0) == 0);
  CHECK(privimage::round_to_integer(0x1p61) == int64_t{1} << 61);
}

privimage::Word word(uint64_t bits) { return {uint32_t(bits), uint32_t(bits >> 32)}; }

void extreme_words_stay_within_nine_and_a_half() {
  const uint64_t turn = uint64_t{1} << 61;
  const uint64_t words[] = {0,        1,        kLargest, kLargest - 1, turn,     turn - 1,
                            turn + 1, 2 * turn, 3 * turn, 4 * turn,     5 * turn, 7 * turn};
  for (uint64_t radius : words) {
    for (uint64_t angle : words) {
      double first, second;
      privimage::gaussian_pair(word(radius), word(angle), first, second);
      CHECK(std::fabs(first) <= 9.5 && std::fabs(second) <= 9.5);
      const long double u = (double(radius) + 0.5) * 0x1p-64;
      const long double size = std::sqrt(-2.0L * std::log(u));
      const long double phi = 2.0L * kPi * (long double)angle * 0x1p-64L;
      CHECK(std::fabs(first - size * std::cos(phi)) < 1e-14);
      CHECK(std::fabs(second - size * std::sin(phi)) < 1e-14);
    }
  }
  double first, second;
  privimage::gaussian_pair({0, 0}, {0, 0}, first, second);
  CHECK(first > 9.49);
}

// FNV-1a over whole integers.
uint64_t digest(const std::vector<int64_t>& integers) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int64_t integer : integers) hash = (hash ^ uint64_t(integer)) * 0x100000001b3;
  return hash;
}

// `known` is the digest that x86-64 and aarch64 gave.
void every_instruction_set_gives_the_same_integers(double std, uint64_t known) {
  const int64_t first = 1000003, count = 1000000;
  std::vector<int64_t> expected(count), found(count);
  Draw job{{{9, 8, 7, 6, 5, 4, 3, 2}, 11}, first, count, std, expected.data()};
  const int64_t begin = privimage::cpu::first_tile(first);
  const int64_t end = privimage::cpu::end_tile(first, count);
  privimage::cpu::gaussian_integers(InstructionSet::kBaseline, job, begin, end);
  CHECK(digest(expected) == known);
  job.out = found.data();
  for (InstructionSet set : {InstructionSet::kAvx2, InstructionSet::kAvx512f}) {
    if (!privimage::cpu::machine_has(set)) continue;
    // In pieces that cut tiles from each other.
    for (int64_t tile = begin; tile < end; tile += 1000) {
      privimage::cpu::gaussian_integers(set, job, tile, std::min(tile + 1000, end));
    }
    CHECK(found == expected);
  }
}

int main() {
  logarithm_is_nearly_rounded();
  sine_and_cosine_are_nearly_rounded();
  conversions_round_once();
  extreme_words_stay_within_nine_and_a_half();
  every_instruction_set_gives_the_same_integers(privimage::kLargestSmallStd, 0x4577cc33b768a639);
  every_instruction_set_gives_the_same_integers(0x1p58, 0xc26225881f8d2f60);
}
