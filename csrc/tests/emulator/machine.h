// A multiprocessor on the CPU: every CUDA thread is a fibre, and what goes wrong is a Fault.
//
// It is stricter than a GPU. Shared memory starts as NaN; an asynchronous copy lands when it is
// waited for, and not before; two threads that touch the same two bytes without a barrier between
// them are a race, whatever order they happen to run in. Warps run ahead of each other at random,
// the same way for the same seed. What memory would do is counted (traffic.h). What it can't see:
// the compiler, the memory model, time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/emulator/traffic.h"

namespace privimage::cuda {
class Block;
}

namespace privimage::emulator {

// What a kernel did that it must not do.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Pieces of global memory: where each begins, and where it ends.
using Pieces = std::map<uint64_t, uint64_t>;

struct Launch {
  int64_t blocks_x;
  int64_t blocks_y;
  int threads;  // a multiple of 32
  int64_t shared_bytes;
  uint64_t seed;
  const Pieces* memory = nullptr;  // all that a kernel may touch, where that is known
};

struct Counters {
  int64_t matrices = 0;    // 8x8 matrices that ldmatrix read
  int64_t wavefronts = 0;  // passes over the banks that it took: one a matrix without conflicts
  int64_t products = 0;    // mma
  int64_t barriers = 0;
  TrafficCounter traffic;  // all other accesses
};

class Machine;

// Something that all lanes of a warp do together; `arguments` holds a pointer of each lane.
struct Operation {
  const char* name;
  void (*perform)(Machine& machine, int warp, void* const* arguments);
};

class Machine {
 public:
  explicit Machine(const Launch& launch);
  ~Machine();
  // The one whose fibre runs: a fibre has no argument that could carry a pointer.
  static thread_local Machine* running;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Runs every block, in random order. Throws Fault.
  void run(const std::function<void(const cuda::Block&)>& kernel);

  // What follows is called by the threads, and by operations on behalf of a thread.
  void meet(const Operation& operation, void* arguments);
  void barrier();
  const uint8_t* read(int thread, int64_t offset, int64_t bytes);
  void write(int thread, int64_t offset, const void* value, int64_t bytes);
  void copy(int thread, int64_t offset, const void* source, int64_t bytes);
  void note(Access access, Line line, int thread, uint64_t address, int64_t bytes) {
    counters.traffic.note(access, line, thread % kLanes, address, bytes);
  }
  void check_global(uint64_t address, int64_t bytes);
  void commit(int thread);
  void wait(int thread, int groups);
  [[noreturn]] void fail(const std::string& what);

  int thread() const { return running_; }
  int64_t block_x() const { return block_x_; }
  int64_t block_y() const { return block_y_; }
  int64_t shared_bytes() const { return launch_.shared_bytes; }

  Counters counters;

 private:
  enum class State { ready, warp, block, done };

  struct Copy {
    int64_t offset;
    uint8_t value[16];
  };

  struct Fibre {
    std::unique_ptr<uint8_t[]> stack;
    ucontext_t start;
    jmp_buf resume;
    bool started = false;
    State state = State::done;
    const Operation* operation = nullptr;
    void* arguments = nullptr;
    std::vector<Copy> uncommitted;
    std::vector<std::vector<Copy>> groups;
  };

  // Who touched two bytes of shared memory last, and between which barriers.
  struct Trace {
    int32_t writer = -1;
    int32_t reader = -1;  // kMany: more than one
    int64_t written = -1;
    int64_t read = -1;
    int32_t copying = -1;  // the thread whose copy is under way
  };

  static void prepare(Fibre& fibre);
  static void enter();
  void resume(int thread);
  void pause(State state);
  void run_block(int64_t index);
  void advance(int warp);
  void settle();
  void check_bounds(int64_t offset, int64_t bytes, int64_t alignment);
  void note_write(int thread, int64_t offset, int64_t bytes);
  void land(int thread, const Copy& copy);
  uint64_t draw();

  Launch launch_;
  uint64_t piece_begins_ = 0, piece_ends_ = 0;  // of global memory, that was touched last
  const std::function<void(const cuda::Block&)>* kernel_ = nullptr;
  std::vector<Fibre> fibres_;
  std::vector<uint8_t> shared_;
  std::vector<Trace> traces_;
  jmp_buf home_;
  int running_ = -1;
  std::string failure_;
  bool failed_ = false;
  int64_t block_x_ = 0;
  int64_t block_y_ = 0;
  int64_t epoch_ = 0;  // barriers passed
  uint64_t random_;
};

// Runs a kernel, given as a function of the block, and says what it did. Throws Fault.
Counters run(const Launch& launch, const std::function<void(const cuda::Block&)>& kernel);

}  // namespace privimage::emulator
