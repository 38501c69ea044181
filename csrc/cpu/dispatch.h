// One build for every x86-64: a function is compiled for several instruction sets, and the first
// call picks the best one the machine has.
#pragma once

#define PRIVIMAGE_INLINE inline __attribute__((always_inline))

// Sanitizers run before the loader can choose between clones; other compilers and machines compile
// the plain loop. A file need not use all that a header has.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(PRIVIMAGE_PLAIN)
#define PRIVIMAGE_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), unused)) static
#else
#define PRIVIMAGE_CLONES static inline
#endif
