// The instructions of PTX that nvcc makes of our kernels, each a function of the same name, as the
// PTX ISA defines them. Those of a whole warp are the emulator's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "tests/emulator/block.h"

namespace privimage::emulator::ptx {

using b8 = uint8_t;
using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using pred = bool;
struct bf16 {};
struct tf32 {};
struct bf16x2 {};

template <typename To, typename From>
To bits_of(From from) {
  static_assert(sizeof(To) <= sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A register: bits, that each instruction takes for what its type says.
template <typename Bits>
struct Register {
  Bits bits;

  Register() = default;
  template <typename T>
  Register(T value) {
    *this = value;
  }
  template <typename T>
  Register& operator=(T value) {
    static_assert(sizeof(T) <= sizeof(Bits));
    if constexpr (std::is_integral_v<T>) {
      bits = static_cast<Bits>(value);
    } else {
      bits = bits_of<Bits>(value);
    }
    return *this;
  }
  Register operator+(int offset) const { return static_cast<Bits>(bits + offset); }
  Register operator-(int offset) const { return *this + -offset; }
};
using B16 = Register<uint16_t>;
using B32 = Register<uint32_t>;
using B64 = Register<uint64_t>;

// An operand: a register, which may be wider, or a number.
template <typename T>
struct In {
  T value;

  template <typename Bits>
  In(Register<Bits> from) : value(bits_of<T>(from.bits)) {}
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  In(Number from) {
    if constexpr (std::is_floating_point_v<T>) {
      value = bits_of<T>(from);
    } else {
      value = static_cast<T>(from);
    }
  }
  operator T() const { return value; }
};
template <typename T>
constexpr uint32_t kBits = 8 * sizeof(T);

// ------------------------------------------------------------------------------------ arithmetic

#define PRIVIMAGE_PTX(name, expression) \
  template <typename T>                 \
  T name(In<T> a, In<T> b) {            \
    return static_cast<T>(expression);  \
  }
PRIVIMAGE_PTX(add, a + b)
PRIVIMAGE_PTX(sub, a - b)
PRIVIMAGE_PTX(mul_lo, a* b)
PRIVIMAGE_PTX(div, a / b)
PRIVIMAGE_PTX(rem, a % b)
PRIVIMAGE_PTX(add_rn, a + b)
PRIVIMAGE_PTX(sub_rn, a - b)
PRIVIMAGE_PTX(mul_rn, a* b)
PRIVIMAGE_PTX(div_rn, a / b)
PRIVIMAGE_PTX(bit_and, a& b)
PRIVIMAGE_PTX(bit_or, a | b)
PRIVIMAGE_PTX(bit_xor, a ^ b)
#undef PRIVIMAGE_PTX

template <typename T>
T neg(In<T> a) {
  return static_cast<T>(-a.value);
}
template <typename T>
T abs(In<T> a) {
  return std::abs(a.value);
}
template <typename T>
T bit_not(In<T> a) {
  if constexpr (std::is_same_v<T, bool>) {
    return !a;
  } else {
    return static_cast<T>(~a.value);
  }
}
template <typename T>
T min(In<T> a, In<T> b) {
  // Of floats the one that is a number, as `std::fmin`; of two zeros the negative one.
  if constexpr (std::is_floating_point_v<T>) {
    if (a.value == b.value) return std::signbit(a.value) ? a : b;
    return std::fmin(a.value, b.value);
  } else {
    return a.value < b.value ? a : b;
  }
}
template <typename T>
T max(In<T> a, In<T> b) {
  static_assert(std::is_integral_v<T>);
  return a.value > b.value ? a : b;
}

template <typename T>
auto mul_wide(In<T> a, In<T> b) {
  if constexpr (sizeof(T) == 2) {
    return std::conditional_t<std::is_signed_v<T>, s32, u32>(a.value) * b.value;
  } else {
    return std::conditional_t<std::is_signed_v<T>, s64, u64>(a.value) * b.value;
  }
}
template <typename T>
T mul_hi(In<T> a, In<T> b) {
  static_assert(sizeof(T) == 4);
  return static_cast<T>(mul_wide<T>(a, b) >> 32);
}
template <typename T>
T mad_lo(In<T> a, In<T> b, In<T> c) {
  return static_cast<T>(a * b + c);
}
template <typename T>
T fma_rn(In<T> a, In<T> b, In<T> c) {
  return std::fma(a.value, b.value, c.value);
}
template <typename T>
T sqrt_rn(In<T> a) {
  return std::sqrt(a.value);
}
template <typename T>
T rcp_rn(In<T> a) {
  return T(1) / a;
}
// On a GPU these are off by an ulp or two.
inline f32 flushed(f32 value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}
template <typename T>
T rcp_approx_ftz(In<T> a) {
  return flushed(1 / flushed(a));
}
template <typename T>
T ex2_approx_ftz(In<T> a) {
  return flushed(std::exp2(flushed(a)));
}

template <typename T>
T shl(In<T> a, In<u32> count) {
  return count < kBits<T> ? static_cast<T>(a.value << count) : T(0);
}
template <typename T>
T shr(In<T> a, In<u32> count) {
  const u32 most = std::is_signed_v<T> ? kBits<T> - 1 : kBits<T>;
  const u32 own = count.value < most ? count.value : most;
  return own < kBits<T> ? static_cast<T>(a.value >> own) : T(0);
}
// Of b a the upper half, after a shift to the left.
template <typename T>
T shf_l_wrap(In<T> a, In<T> b, In<u32> count) {
  return static_cast<T>(((u64{b} << 32 | a) << (count & 31u)) >> 32);
}
template <typename T>
T bfi(In<T> a, In<T> b, In<u32> position, In<u32> length) {
  T result = b;
  for (u32 i = 0; i < length && position + i < kBits<T>; ++i) {
    const T mask = T(1) << (position + i);
    result = a >> i & 1 ? result | mask : result & ~mask;
  }
  return result;
}

// ---------------------------------------------------------------------- comparison and conversion

#define PRIVIMAGE_PTX(name, expression) \
  template <typename T>                 \
  bool setp_##name(In<T> x, In<T> y) {  \
    const T a = x, b = y;               \
    return expression;                  \
  }
PRIVIMAGE_PTX(eq, a == b)
PRIVIMAGE_PTX(ne, a<b || a> b)  // false of a NaN
PRIVIMAGE_PTX(lt, a < b)
PRIVIMAGE_PTX(le, a <= b)
PRIVIMAGE_PTX(gt, a > b)
PRIVIMAGE_PTX(ge, a >= b)
PRIVIMAGE_PTX(neu, a != b)  // these are true of a NaN
PRIVIMAGE_PTX(ltu, !(a >= b))
PRIVIMAGE_PTX(leu, !(a > b))
PRIVIMAGE_PTX(gtu, !(a <= b))
PRIVIMAGE_PTX(geu, !(a < b))
#undef PRIVIMAGE_PTX

template <typename T>
T selp(In<T> a, In<T> b, bool first) {
  return first ? a : b;
}

template <typename T>
T mov(In<T> a) {
  return a;
}
template <typename T>
T mov(B32 low, B32 high) {
  static_assert(sizeof(T) == 8);
  return u64{high.bits} << 32 | low.bits;
}
template <typename T>
T mov(B16 low, B16 high) {
  static_assert(sizeof(T) == 4);
  return u32{high.bits} << 16 | low.bits;
}
template <typename T>
void mov(B32& low, B32& high, B64 from) {
  low = static_cast<u32>(from.bits);
  high = static_cast<u32>(from.bits >> 32);
}
template <typename T>
void mov(B16& low, B16& high, B32 from) {
  low = static_cast<u16>(from.bits);
  high = static_cast<u16>(from.bits >> 16);
}

template <typename To, typename From>
To cvt(In<From> a) {
  static_assert(std::is_integral_v<To> == std::is_integral_v<From>);
  static_assert(std::is_integral_v<To> || sizeof(To) >= sizeof(From));
  return static_cast<To>(a.value);
}
// To the nearest, ties to even: the host's way.
template <typename To, typename From>
To cvt_rn(In<From> a) {
  static_assert(std::is_floating_point_v<To>);
  return static_cast<To>(a.value);
}
template <typename To, typename From>
To cvt_rzi(In<From> a) {
  using Limits = std::numeric_limits<To>;
  static_assert(std::is_same_v<To, s32> && std::is_floating_point_v<From>);
  if (!(a.value > Limits::min())) return Limits::min();  // a NaN, too
  return a.value < Limits::max() ? static_cast<To>(a.value) : Limits::max();
}
inline u32 bfloat16_of(f32 value) { return std::isnan(value) ? 0x7fffu : to_bfloat16(value).bits; }
template <typename To, typename From>
u32 cvt_rn(In<From> upper, In<From> lower) {
  static_assert(std::is_same_v<To, bf16x2>);
  return bfloat16_of(upper) << 16 | bfloat16_of(lower);
}
// To the nearest of 10 bits behind the point, ties away from zero.
template <typename To, typename From>
u32 cvt_rna(In<From> a) {
  static_assert(std::is_same_v<To, tf32>);
  return std::isnan(a.value) ? 0x7fffffffu : (bits_of<u32>(a.value) + 0x1000u) & 0xffffe000u;
}

// ----------------------------------------------------------------------------------------- memory

inline Machine& machine() { return *Machine::running; }
inline void expect(bool is_so, const char* what) {
  if (!is_so) machine().fail(what);
}
inline B32 tid_x() { return machine().thread(); }
inline B32 ctaid_x() { return static_cast<u32>(machine().block_x()); }
inline B32 ctaid_y() { return static_cast<u32>(machine().block_y()); }
constexpr int shared = 0;  // where it begins

// `count` neighbours, from memory and back.
template <typename T, typename... To>
void load(const void* from, To&... to) {
  T values[sizeof...(To)];
  std::memcpy(values, from, sizeof values);
  const T* next = values;
  ((to = *next++), ...);
}

inline void* global(B64 address, int64_t bytes) {
  if (address.bits % bytes != 0) {
    machine().fail("global memory: an address is not aligned to " + std::to_string(bytes));
  }
  machine().check_global(address.bits, bytes);
  return reinterpret_cast<void*>(address.bits);
}

template <typename T, typename... To>
void ld_param(B64 from, To&... to) {
  load<T>(reinterpret_cast<const void*>(from.bits), to...);
}
template <typename T, typename... To>
void ld_global(B64 from, To&... to) {
  load<T>(global(from, sizeof(T) * sizeof...(To)), to...);
}
template <typename T, typename... From>
void st_global(B64 to, From... from) {
  const T values[] = {In<T>(from)...};
  std::memcpy(global(to, sizeof values), values, sizeof values);
}
template <typename T>
void atom_global_add(B64 at, B64& before, In<T> value) {
  load<T>(global(at, sizeof(T)), before);
  st_global<T>(at, before.bits + value);
}
template <typename T>
B64 cvta_to_global(B64 address) {
  return address;
}
template <typename T, typename... To>
void ld_shared(B32 from, To&... to) {
  load<T>(machine().read(machine().thread(), from.bits, sizeof(T) * sizeof...(To)), to...);
}
template <typename T, typename... From>
void st_shared(B32 to, From... from) {
  const T values[] = {In<T>(from)...};
  machine().write(machine().thread(), to.bits, values, sizeof values);
}

// `read` of 16 bytes, and zeros behind them.
inline void cp_async_cg_shared_global(B32 to, B64 from, int bytes, B32 read = 16) {
  expect(bytes == 16, "cp.async.cg: expected 16 bytes");
  if (read.bits > 0) machine().check_global(from.bits, read.bits);
  machine().copy(machine().thread(), to.bits, reinterpret_cast<const void*>(from.bits), read.bits);
}
inline void cp_async_commit_group() { machine().commit(machine().thread()); }
inline void cp_async_wait_group(int groups) { machine().wait(machine().thread(), groups); }

// -------------------------------------------------------------------------------- with one another

inline void bar_sync(int number) {
  expect(number == 0, "bar.sync: expected barrier 0");
  machine().barrier();
}

template <typename T>
void shfl_sync_bfly(B32& to, bool& is_there, In<T> from, In<u32> mask, In<u32> clamp,
                    In<u32> lanes) {
  expect(clamp == 31 && lanes == ~0u, "shfl: expected the whole warp");
  to = from.value;
  is_there = true;
  ShuffleArguments arguments{&to.bits, sizeof(T), static_cast<int>(mask.value)};
  machine().meet(kShuffleXor, &arguments);
}

template <typename T>
void ldmatrix_sync_aligned_m8n8_x4_trans_shared(B32 from, B32& a, B32& b, B32& c, B32& d) {
  u32 to[4];
  LoadArguments arguments{to, from.bits};
  machine().meet(kLoadTransposed, &arguments);
  load<u32>(to, a, b, c, d);
}

#define PRIVIMAGE_PTX(name, operation)                                                          \
  template <typename...>                                                                        \
  void name(B32& d0, B32& d1, B32& d2, B32& d3, B32 a0, B32 a1, B32 a2, B32 a3, B32 b0, B32 b1, \
            In<f32> c0, In<f32> c1, In<f32> c2, In<f32> c3) {                                   \
    const u32 a[4] = {a0.bits, a1.bits, a2.bits, a3.bits};                                      \
    f32 sum[4] = {c0, c1, c2, c3};                                                              \
    MultiplyArguments arguments{sum, a, {b0.bits, b1.bits}};                                    \
    machine().meet(operation, &arguments);                                                      \
    load<f32>(sum, d0, d1, d2, d3);                                                             \
  }
PRIVIMAGE_PTX(mma_sync_aligned_m16n8k16_row_col, kMultiplyAdd)
PRIVIMAGE_PTX(mma_sync_aligned_m16n8k8_row_col, kMultiplyAddTf32)
#undef PRIVIMAGE_PTX

// A kernel, by the linker's name, for at most so many threads.
struct Kernel {
  Kernel(const char* name, void (*run)(B64), unsigned threads);
};

}  // namespace privimage::emulator::ptx
