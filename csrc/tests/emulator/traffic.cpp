#include "tests/emulator/traffic.h"

#include <algorithm>
#include <utility>

namespace privimage::emulator {
namespace {

constexpr int64_t kSector = 32, kSectorsOfLine = 4;
constexpr int64_t kWord = 4, kBanks = 32;

// The units of so many bytes that some lanes touch, each once, in order. An access takes 16 bytes
// at most, so that a lane touches few.
class Touched {
 public:
  template <typename Instruction>
  Touched(const Instruction& instruction, int first, int last, int64_t unit) {
    bool sorted = true;
    for (int lane = first; lane < last; ++lane) {
      if (instruction.bytes[lane] == 0) continue;
      const int64_t begin = static_cast<int64_t>(instruction.address[lane]);
      const int64_t end = begin + instruction.bytes[lane];
      for (int64_t i = begin / unit; i * unit < end; ++i) {
        if (size_ > 0 && i == units_[size_ - 1]) continue;
        sorted = sorted && (size_ == 0 || units_[size_ - 1] < i);
        units_[size_++] = i;
      }
    }
    if (sorted) return;
    std::sort(units_, units_ + size_);
    size_ = static_cast<int>(std::unique(units_, units_ + size_) - units_);
  }

  int64_t size() const { return size_; }
  const int64_t* begin() const { return units_; }
  const int64_t* end() const { return units_ + size_; }

 private:
  int size_ = 0;
  int64_t units_[16 * kLanes];
};

// As many lanes at once as could fill the banks, each bank one word a pass.
template <typename Instruction>
void add_shared(const Instruction& instruction, Traffic& total) {
  const int64_t widest = *std::max_element(instruction.bytes, instruction.bytes + kLanes);
  const int together = static_cast<int>(std::min<int64_t>(kLanes, kBanks * kWord / widest));
  for (int lane = 0; lane < kLanes; lane += together) {
    int64_t words[kBanks] = {};
    for (int64_t word : Touched(instruction, lane, lane + together, kWord)) ++words[word % kBanks];
    total.taken += *std::max_element(words, words + kBanks);
  }
  total.least += (Touched(instruction, 0, kLanes, kWord).size() + kBanks - 1) / kBanks;
}

template <typename Instruction>
void add_global(const Instruction& instruction, Traffic& total) {
  const Touched sectors(instruction, 0, kLanes, kSector);
  total.taken += sectors.size();
  total.least += (Touched(instruction, 0, kLanes, 1).size() + kSector - 1) / kSector;
  int64_t before = -1;
  for (int64_t sector : sectors) {
    total.lines += sector / kSectorsOfLine != before;
    before = sector / kSectorsOfLine;
  }
}

}  // namespace

TrafficCounter::Place& TrafficCounter::find(Access access, Line line) {
  const size_t start = static_cast<size_t>(line.number) * kAccesses + static_cast<size_t>(access);
  for (size_t i = start;; ++i) {
    Place& place = places_[i % places_.size()];
    if (place.line.file == nullptr) place = {access, line, -1, 0, {}};
    if (place.line.number == line.number && place.line.file == line.file &&
        place.access == access) {
      return place;
    }
  }
}

void TrafficCounter::note(Access access, Line line, int lane, uint64_t address, int64_t bytes) {
  Place& place = find(access, line);
  if (place.instructions.empty()) noted_.push_back(&place);
  if (place.instructions.empty() || place.lane != lane) place.next = 0;
  place.lane = lane;
  if (place.next == place.instructions.size()) place.instructions.push_back({});
  Instruction& instruction = place.instructions[place.next++];
  instruction.address[lane] = address;
  instruction.bytes[lane] = bytes;
}

void TrafficCounter::meet() {
  for (Place* place : noted_) {
    Traffic& total = totals_[static_cast<int>(place->access)];
    const bool shared =
        place->access == Access::kSharedLoad || place->access == Access::kSharedStore;
    for (const Instruction& instruction : place->instructions) {
      total.instructions += 1;
      shared ? add_shared(instruction, total) : add_global(instruction, total);
    }
    place->instructions.clear();
  }
  noted_.clear();
}

}  // namespace privimage::emulator
