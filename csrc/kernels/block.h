// What a kernel may ask of its block of threads. Kernels are functions of a Block and know nothing
// else of CUDA, so that one text is a GPU kernel under nvcc and a test under any C++ compiler.
//
//   thread(), lane(), warp()      where this thread is in its block, warp, and which warp it is in
//   x(), y()                      where the block is in its grid
//   barrier()                     all threads of the block meet; what was written is seen by all
//   shuffle_xor(value, mask)      all lanes meet; the value of lane ^ mask
//   shared<T>(offset, count)      a piece of the block's shared memory, by bytes from its start
//   ….load(i), ….load_vector<n>(i)  one value of it; n of them by one instruction, 16 bytes at most
//   copy16(to, index, from, n)    16 bytes into shared memory in the background: n, then zeros
//   commit(), wait<n>()           closes a group of copies; waits until n groups are under way
//   load_transposed(...)          four 8x8 matrices of 16-bit values, each lane gets columns
//   multiply_add(...)             bf16 16x16 by 16x8, fp32 sums; tf32 16x8 by 8x8
//   to_tf32(value)                the nearest tf32, as the bits that multiply_add_tf32 takes
//   load(from), store(to, value)  a value in global memory, or a Vector of neighbours
//   add(to, value)                to an integer in global memory that other blocks add to as well
//
// Each access of memory is one instruction, whose lanes are best served where they touch few banks
// twice and few sectors of 32 bytes: the emulator counts both (tests/emulator/traffic.h).
//
// The fragments are those of ldmatrix and mma.sync in the PTX ISA. All lanes of a warp must make
// the same calls of shuffle_xor, load_transposed and multiply_add, and all threads of barrier.
#pragma once

#if defined(__CUDACC__)
#include "kernels/block_ptx.h"
#else
#include "tests/emulator/block.h"
#endif
