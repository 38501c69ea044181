// What a GPU's memory would do for a kernel: accesses of lanes, put together to instructions of a
// warp, and counted in the units in which the memory serves them.
//
// Lanes run apart here. Accesses of different lanes are one instruction if they come from the same
// line of the kernel and are equally many there since the warp's last meeting: what a GPU does
// where all lanes take the same way. Where a lane skips one of several accesses of a line, as in a
// loop that ends earlier for it, its others stand beside the wrong ones of its neighbours: look at
// full tiles. Not seen: caches, and accesses that the compiler joins, moves or drops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace privimage::emulator {

constexpr int kLanes = 32;

// A background copy is a load and a store. ldmatrix is counted apart, by matrices.
enum class Access { kSharedLoad, kSharedStore, kGlobalLoad, kGlobalStore, kGlobalAdd };
constexpr int kAccesses = 5;

// What the instructions of a kind took, and the least that their bytes could take: passes over the
// 32 banks of shared memory, or sectors of 32 bytes of global memory.
struct Traffic {
  int64_t instructions = 0;
  int64_t taken = 0;
  int64_t least = 0;
  int64_t lines = 0;  // of 128 bytes of global memory: each is a pass of the load/store unit

  double ratio() const { return static_cast<double>(taken) / static_cast<double>(least); }
};

// A line of a kernel; as a default argument, the caller's.
struct Line {
  Line(const char* file, int number) : file(file), number(number) {}

  const char* file;
  int number;
};

class TrafficCounter {
 public:
  void note(Access access, Line line, int lane, uint64_t address, int64_t bytes);
  // Adds up what was noted: the lanes of one warp, from one of its meetings to the next.
  void meet();

  const Traffic& of(Access access) const { return totals_[static_cast<int>(access)]; }

 private:
  struct Instruction {
    uint64_t address[kLanes];
    int64_t bytes[kLanes];  // 0: the lane takes no part
  };
  struct Place {
    Access access{};
    Line line{nullptr, 0};
    int lane = -1;    // that came last, and
    size_t next = 0;  // its next instruction here
    std::vector<Instruction> instructions;
  };

  Place& find(Access access, Line line);

  Traffic totals_[kAccesses];
  std::vector<Place> places_{256};  // a hash table
  std::vector<Place*> noted_;       // those with instructions
};

}  // namespace privimage::emulator
