// Gaussian integers from random words: 64-bit uniforms, Box-Muller in float64, rounding.
//
// Logarithm, sine and cosine are polynomials of our own, made of additions and multiplications
// that IEEE 754 defines to the last bit, in a fixed order; with contraction off (-ffp-contract=off,
// --fmad=false) every compiler, instruction set and GPU gives the same integers. The coefficients
// interpolate the functions at Chebyshev nodes; privimage/ops/reference_noise.py holds the same
// numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "shared/host_device.h"

namespace privimage {

PRIVIMAGE_HOST_DEVICE double as_double(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PRIVIMAGE_HOST_DEVICE uint64_t as_bits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// high 2^32 + low - `offset`, rounded once; `offset` is a multiple of 2^32 below 2^64. Vector units
// before AVX-512 convert no 64-bit integers, so both halves are placed in the mantissa of a
// constant (2^84 has steps of 2^32, 2^52 of 1) that a subtraction takes away again; only the last
// addition rounds.
PRIVIMAGE_HOST_DEVICE double to_double(uint32_t high, uint32_t low, double offset) {
  const double upper = as_double(high | 0x4530000000000000);
  const double lower = as_double(low | 0x4330000000000000);
  return (upper - (0x1p84 + 0x1p52 + offset)) + lower;
}

PRIVIMAGE_HOST_DEVICE double signed_to_double(int64_t value) {
  const uint64_t raised = static_cast<uint64_t>(value) + (uint64_t{1} << 63);
  return to_double(static_cast<uint32_t>(raised >> 32), static_cast<uint32_t>(raised), 0x1p63);
}

// The nearest integer, the even one of two, for |value| < 2^51: adding 3 · 2^51 makes a float64
// round at the binary point.
PRIVIMAGE_HOST_DEVICE int64_t round_small_to_integer(double value) {
  const double round = 0x1.8p52;
  return static_cast<int64_t>(as_bits(value + round) - as_bits(round));
}

// The same for |value| < 2^62: first the multiples of 2^32, then the exact rest.
PRIVIMAGE_HOST_DEVICE int64_t round_to_integer(double value) {
  const double round = 0x1.8p52;
  const double high = value * 0x1p-32 + round;
  const double rest = value - (high - round) * 0x1p32;
  const uint64_t multiples = as_bits(high) - as_bits(round);
  return static_cast<int64_t>(multiples << 32) + round_small_to_integer(rest);
}

// Up to this standard deviation no Gaussian needs the larger range.
constexpr double kLargestSmallStd = 0x1p47;

// ln u for u in [2^-65, 1], to 1 unit in the last place.
//
// u = 2^k (1 + f) with 1 + f in [√½, √2); s = f / (2 + f) and ln(1 + f) = 2 artanh s
// = 2 s + s R(s²) = f - s (f - R(s²)), in which the leading f is exact.
PRIVIMAGE_HOST_DEVICE double natural_logarithm(double u) {
  const uint64_t root_half = 0x3fe6a09e667f3bcd;
  const uint64_t bias = uint64_t{128} << 52;
  const uint64_t exponent = (as_bits(u) - root_half + bias) >> 52;  // k + 128
  const double k = as_double(exponent | 0x4330000000000000) - (0x1p52 + 128.0);
  const double f = as_double(as_bits(u) - (exponent << 52) + bias) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double r = 0x1.2b5f68a50d903p-3;
  r = r * z + 0x1.39fdcceb4bb45p-3;
  r = r * z + 0x1.7462b91b8df65p-3;
  r = r * z + 0x1.c71c62d5e53e0p-3;
  r = r * z + 0x1.2492492dfd86cp-2;
  r = r * z + 0x1.9999999995273p-2;
  r = r * z + 0x1.5555555555558p-1;
  // ln 2 in two parts; k times the first is exact.
  const double rest = s * (f - r * z) - k * 0x1.9ef35793c7673p-41;
  return k * 0x1.62e42fefa2000p-1 + (f - rest);
}

// sin(π t / 2) and cos(π t / 2) for |t| <= ½, to 1.7 and 1.5 units in the last place.
PRIVIMAGE_HOST_DEVICE void quarter_sine_cosine(double t, double& sine, double& cosine) {
  const double w = t * t;
  double s = 0x1.e4a96917f6cc2p-25;
  s = s * w - 0x1.e3027cee75368p-19;
  s = s * w + 0x1.50783207c0263p-13;
  s = s * w - 0x1.32d2cce4ffbdep-8;
  s = s * w + 0x1.466bc6775a473p-4;
  s = s * w - 0x1.4abbce625be52p-1;
  // π / 2 in two parts: the small one joins the small terms.
  sine = t * 0x1.921fb54442d18p+0 + t * (s * w + 0x1.1a62633145c07p-54);
  double c = 0x1.b2f38468445b5p-28;
  c = c * w - 0x1.f9ce23426c0b7p-22;
  c = c * w + 0x1.a6d1eef358ff6p-16;
  c = c * w - 0x1.e1f5068687c82p-11;
  c = c * w + 0x1.55d3c7e3cb23ap-6;
  c = c * w - 0x1.03c1f081b5ac0p-2;
  c = c * w + 0x1.3bd3cc9be45dep+0;
  cosine = 1.0 - c * w;
}

// A word of 64 random bits.
struct Word {
  uint32_t low;
  uint32_t high;
};

// Two independent standard Gaussians from two words (Box and Muller 1958).
//
// The radius √(-2 ln u) has u = (word + ½) 2^-64 > 0, so it is finite and at most 9.5; the angle
// has all 64 bits of its word: two for the quarter turn, 62 for the place within.
PRIVIMAGE_HOST_DEVICE void gaussian_pair(Word radius_word, Word angle_word, double& first,
                                         double& second) {
  const double u = (to_double(radius_word.high, radius_word.low, 0.0) + 0.5) * 0x1p-64;
  const double radius = sqrt(-2.0 * natural_logarithm(u));
  // An eighth of a turn is added so that the two highest bits name the nearest quarter.
  const uint32_t turned = angle_word.high + (uint32_t{1} << 29);
  const uint64_t quarter = turned >> 30;
  const double t = to_double(turned & 0x3fffffff, angle_word.low, 0x1p61) * 0x1p-62;
  double sine, cosine;
  quarter_sine_cosine(t, sine, cosine);
  const bool odd = (quarter & 1) != 0;
  const double along = odd ? sine : cosine;
  const double across = odd ? cosine : sine;
  // Cosine is negative in quarters 1 and 2, sine in 2 and 3.
  first = radius * as_double(as_bits(along) ^ (((quarter + 1) & 2) << 62));
  second = radius * as_double(as_bits(across) ^ ((quarter & 2) << 62));
}

}  // namespace privimage
