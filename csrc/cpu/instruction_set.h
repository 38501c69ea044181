// The instruction sets that a loop is compiled for, and which of them runs.
//
// Unlike the clones of dispatch.h these can be called by name, so that a test can hold them against
// each other, and chosen by PRIVIMAGE_INSTRUCTION_SET=baseline|avx2|avx512f, so that they can be
// timed. They compute the same bits.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"

namespace privimage::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512f };

#if defined(__GNUC__) && defined(__x86_64__)
#define PRIVIMAGE_COMPILED_FOR(name) __attribute__((target(name)))
inline bool machine_has(InstructionSet set) {
  if (set == InstructionSet::kAvx512f) return __builtin_cpu_supports("avx512f");
  if (set == InstructionSet::kAvx2) return __builtin_cpu_supports("avx2");
  return true;
}
#else
#define PRIVIMAGE_COMPILED_FOR(name)
inline bool machine_has(InstructionSet set) { return set == InstructionSet::kBaseline; }
#endif

// The set of this name; throws std::runtime_error if there is none, or the machine lacks it.
inline InstructionSet instruction_set(const std::string& name) {
  InstructionSet set;
  if (name == "baseline") {
    set = InstructionSet::kBaseline;
  } else if (name == "avx2") {
    set = InstructionSet::kAvx2;
  } else if (name == "avx512f") {
    set = InstructionSet::kAvx512f;
  } else {
    throw std::runtime_error("instruction set " + name + ": known are baseline, avx2, avx512f");
  }
  if (!machine_has(set)) throw std::runtime_error("this machine has no " + name);
  return set;
}

// What the environment asks for, or the best that the machine has.
inline InstructionSet chosen_instruction_set() {
  static const InstructionSet chosen = [] {
    const char* asked = std::getenv("PRIVIMAGE_INSTRUCTION_SET");
    if (asked != nullptr && *asked != '\0') return instruction_set(asked);
    for (InstructionSet set : {InstructionSet::kAvx512f, InstructionSet::kAvx2}) {
      if (machine_has(set)) return set;
    }
    return InstructionSet::kBaseline;
  }();
  return chosen;
}

}  // namespace privimage::cpu

// Defines name(set, job, begin, end): `loop`, which must be always inline, compiled for each set.
#define PRIVIMAGE_PER_INSTRUCTION_SET(name, loop, Job)                                           \
  inline void name##_baseline(const Job& job, int64_t begin, int64_t end) {                      \
    loop(job, begin, end);                                                                       \
  }                                                                                              \
  PRIVIMAGE_COMPILED_FOR("avx2")                                                                 \
  inline void name##_avx2(const Job& job, int64_t begin, int64_t end) { loop(job, begin, end); } \
  PRIVIMAGE_COMPILED_FOR("avx512f")                                                              \
  inline void name##_avx512f(const Job& job, int64_t begin, int64_t end) {                       \
    loop(job, begin, end);                                                                       \
  }                                                                                              \
  inline void name(InstructionSet set, const Job& job, int64_t begin, int64_t end) {             \
    if (set == InstructionSet::kAvx512f) return name##_avx512f(job, begin, end);                 \
    if (set == InstructionSet::kAvx2) return name##_avx2(job, begin, end);                       \
    name##_baseline(job, begin, end);                                                            \
  }
