#include "tests/emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <tuple>

#include "tests/emulator/block.h"

namespace privimage::emulator {
namespace {

constexpr int64_t kStackBytes = 1 << 17;
constexpr int64_t kGranule = 2;  // bytes that a Trace stands for: the smallest thing we store
constexpr int32_t kMany = -2;

std::string name(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / kLanes) + ")";
}

}  // namespace

thread_local Machine* Machine::running = nullptr;

Machine::Machine(const Launch& launch)
    : launch_(launch),
      fibres_(launch.threads),
      shared_(launch.shared_bytes),
      traces_((launch.shared_bytes + kGranule - 1) / kGranule),
      random_(launch.seed * 0x9e3779b97f4a7c15u + 1) {
  if (launch.threads <= 0 || launch.threads % kLanes != 0) {
    throw Fault("threads: expected a multiple of 32, got " + std::to_string(launch.threads));
  }
  for (Fibre& fibre : fibres_) {
    fibre.stack.reset(new uint8_t[kStackBytes]);
    prepare(fibre);
  }
}

Machine::~Machine() = default;

// ----------------------------------------------------------------------------------------- fibres

void Machine::prepare(Fibre& fibre) {
  getcontext(&fibre.start);
  fibre.start.uc_stack.ss_sp = fibre.stack.get();
  fibre.start.uc_stack.ss_size = kStackBytes;
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, &Machine::enter, 0);
}

// A fibre runs the kernel for one block after the other; it is thrown away in its last pause.
void Machine::enter() {
  Machine& machine = *running;
  const int thread = machine.running_;
  for (;;) {
    (*machine.kernel_)(cuda::Block(machine, thread));
    machine.pause(State::done);
  }
}

void Machine::resume(int thread) {
  running_ = thread;
  running = this;
  // After the first entry a jump will do: it leaves the signal mask alone, which costs two calls
  // of the system.
  if (_setjmp(home_) == 0) {
    Fibre& fibre = fibres_[thread];
    if (fibre.started) _longjmp(fibre.resume, 1);
    fibre.started = true;
    setcontext(&fibre.start);
  }
  running_ = -1;
  if (failed_) throw Fault(failure_);
}

void Machine::pause(State state) {
  Fibre& fibre = fibres_[running_];
  fibre.state = state;
  if (state != State::warp) fibre.operation = nullptr;
  if (_setjmp(fibre.resume) == 0) _longjmp(home_, 1);
}

void Machine::fail(const std::string& what) {
  const std::string where =
      "block " + std::to_string(block_x_) + ", " + std::to_string(block_y_) + ": " + what;
  if (running_ < 0) throw Fault(where);
  // An exception can't leave a fibre.
  failure_ = where;
  failed_ = true;
  _longjmp(home_, 1);
}

// -------------------------------------------------------------------------------------- scheduler

uint64_t Machine::draw() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_ >> 11;
}

void Machine::run(const std::function<void(const cuda::Block&)>& kernel) {
  kernel_ = &kernel;
  std::vector<int64_t> order(launch_.blocks_x * launch_.blocks_y);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  for (int64_t index : order) run_block(index);
}

void Machine::run_block(int64_t index) {
  block_x_ = index % launch_.blocks_x;
  block_y_ = index / launch_.blocks_x;
  epoch_ = 0;
  std::fill(shared_.begin(), shared_.end(), uint8_t{0xff});  // NaN in every type
  std::fill(traces_.begin(), traces_.end(), Trace{});
  for (Fibre& fibre : fibres_) fibre.state = State::ready;
  for (;;) {
    std::vector<int> ready;
    for (int thread = 0; thread < launch_.threads; thread += kLanes) {
      if (fibres_[thread].state == State::ready) ready.push_back(thread / kLanes);
    }
    if (!ready.empty()) {
      advance(ready[draw() % ready.size()]);
    } else if (fibres_[0].state == State::done) {
      break;
    } else {
      settle();
    }
  }
  settle();
}

// Lets a warp run to its next operation, and often further ahead of the others.
void Machine::advance(int warp) {
  Fibre* lanes = &fibres_[warp * kLanes];
  do {
    const int first = static_cast<int>(draw() % kLanes);
    for (int i = 0; i < kLanes; ++i) resume(warp * kLanes + (first + i) % kLanes);
    counters.traffic.meet();
    void* arguments[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes[lane].state != lanes[0].state || lanes[lane].operation != lanes[0].operation) {
        const auto describe = [](const Fibre& fibre) -> std::string {
          if (fibre.state == State::done) return "the end";
          return fibre.state == State::block ? "a barrier" : fibre.operation->name;
        };
        fail("warp " + std::to_string(warp) + " diverges: lane 0 is at " + describe(lanes[0]) +
             ", lane " + std::to_string(lane) + " at " + describe(lanes[lane]));
      }
      arguments[lane] = lanes[lane].arguments;
    }
    if (lanes[0].state != State::warp) return;
    lanes[0].operation->perform(*this, warp, arguments);
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane].state = State::ready;
  } while (draw() % 8 != 0);
}

// No warp can go on: everybody is at the barrier, or at the end, or the block hangs.
void Machine::settle() {
  int waiting = 0;
  for (const Fibre& fibre : fibres_) waiting += fibre.state == State::block;
  if (waiting != 0 && waiting != launch_.threads) {
    fail("deadlock: " + std::to_string(waiting) + " of " + std::to_string(launch_.threads) +
         " threads wait at a barrier, the others have ended");
  }
  for (int thread = 0; thread < launch_.threads; ++thread) {
    Fibre& fibre = fibres_[thread];
    if (waiting != 0) {
      fibre.state = State::ready;
      continue;
    }
    for (const auto& group : fibre.groups) {
      if (!group.empty()) fail(name(thread) + " ends with copies that it never waited for");
    }
    if (!fibre.uncommitted.empty()) fail(name(thread) + " ends with uncommitted copies");
    fibre.groups.clear();
  }
  epoch_ += waiting != 0;
  counters.barriers += waiting != 0;
}

void Machine::meet(const Operation& operation, void* arguments) {
  fibres_[running_].operation = &operation;
  fibres_[running_].arguments = arguments;
  pause(State::warp);
}

void Machine::barrier() { pause(State::block); }

// ---------------------------------------------------------------------------------- shared memory

void Machine::check_bounds(int64_t offset, int64_t bytes, int64_t alignment) {
  if (offset < 0 || offset + bytes > launch_.shared_bytes) {
    fail("shared memory: bytes " + std::to_string(offset) + " to " +
         std::to_string(offset + bytes) + " of " + std::to_string(launch_.shared_bytes));
  }
  if (offset % alignment != 0) {
    fail("shared memory: byte " + std::to_string(offset) + " is not aligned to " +
         std::to_string(alignment));
  }
}

const uint8_t* Machine::read(int thread, int64_t offset, int64_t bytes) {
  check_bounds(offset, bytes, bytes);
  for (int64_t i = offset / kGranule; i < (offset + bytes + kGranule - 1) / kGranule; ++i) {
    Trace& trace = traces_[i];
    if (trace.copying >= 0) {
      fail(name(thread) + " reads what a copy of " + name(trace.copying) + " has not brought yet");
    }
    if (trace.written == epoch_ && trace.writer != thread) {
      fail("race: " + name(thread) + " reads what " + name(trace.writer) +
           " writes between the same barriers");
    }
    const bool first = trace.read != epoch_ || trace.reader == thread;
    trace.reader = first ? thread : kMany;
    trace.read = epoch_;
  }
  return &shared_[offset];
}

void Machine::note_write(int thread, int64_t offset, int64_t bytes) {
  for (int64_t i = offset / kGranule; i < (offset + bytes + kGranule - 1) / kGranule; ++i) {
    Trace& trace = traces_[i];
    if (trace.copying >= 0) {
      fail(name(thread) + " writes where a copy of " + name(trace.copying) + " is under way");
    }
    if (trace.written == epoch_ && trace.writer != thread) {
      fail("race: " + name(thread) + " and " + name(trace.writer) +
           " write between the same barriers");
    }
    if (trace.read == epoch_ && trace.reader != thread) {
      fail("race: " + name(thread) + " writes what is read between the same barriers");
    }
    trace.writer = thread;
    trace.written = epoch_;
  }
}

void Machine::write(int thread, int64_t offset, const void* value, int64_t bytes) {
  check_bounds(offset, bytes, bytes);
  note_write(thread, offset, bytes);
  std::memcpy(&shared_[offset], value, bytes);
}

// ---------------------------------------------------------------------------------- global memory

void Machine::check_global(uint64_t address, int64_t bytes) {
  if (launch_.memory == nullptr) return;
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  if (piece_begins_ <= address && end <= piece_ends_) return;
  const auto behind = launch_.memory->upper_bound(address);
  if (behind != launch_.memory->begin()) {
    std::tie(piece_begins_, piece_ends_) = *std::prev(behind);
    if (end <= piece_ends_) return;
  }
  fail("global memory: " + std::to_string(bytes) + " bytes that are not the device's");
}

// ---------------------------------------------------------------------------- asynchronous copies

void Machine::copy(int thread, int64_t offset, const void* source, int64_t bytes) {
  check_bounds(offset, 16, 16);
  if (bytes < 0 || bytes > 16) fail("copy: expected 0 to 16 bytes, got " + std::to_string(bytes));
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) fail("copy: the source is not aligned to 16");
  note_write(thread, offset, 16);
  for (int64_t i = offset / kGranule; i < (offset + 16) / kGranule; ++i) {
    traces_[i].copying = thread;
  }
  Copy copy{offset, {}};
  if (bytes > 0) std::memcpy(copy.value, source, bytes);
  fibres_[thread].uncommitted.push_back(copy);
}

void Machine::commit(int thread) {
  Fibre& fibre = fibres_[thread];
  fibre.groups.push_back(std::move(fibre.uncommitted));
  fibre.uncommitted.clear();
}

void Machine::wait(int thread, int groups) {
  auto& under_way = fibres_[thread].groups;
  const int64_t landing = std::max<int64_t>(0, static_cast<int64_t>(under_way.size()) - groups);
  for (int64_t i = 0; i < landing; ++i) {
    for (const Copy& copy : under_way[i]) land(thread, copy);
  }
  under_way.erase(under_way.begin(), under_way.begin() + landing);
}

void Machine::land(int thread, const Copy& copy) {
  for (int64_t i = copy.offset / kGranule; i < (copy.offset + 16) / kGranule; ++i) {
    traces_[i].copying = -1;
    traces_[i].writer = thread;
    traces_[i].written = epoch_;
  }
  std::memcpy(&shared_[copy.offset], copy.value, 16);
}

Counters run(const Launch& launch, const std::function<void(const cuda::Block&)>& kernel) {
  Machine machine(launch);
  machine.run(kernel);
  return machine.counters;
}

}  // namespace privimage::emulator
