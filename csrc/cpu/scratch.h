// Memory that a thread keeps for its next call, since the heap costs as much as a small layer.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace privimage::cpu {

template <typename Scalar>
class Scratch {
 public:
  // Room for `count` values that hold anything, on a cache line's border.
  Scalar* at_least(int64_t count) {
    if (count > size_) {
      values_.reset(static_cast<Scalar*>(::operator new(count * sizeof(Scalar), kAlignment)));
      size_ = count;
    }
    return values_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(Scalar* values) const { ::operator delete(values, kAlignment); }
  };
  std::unique_ptr<Scalar[], Delete> values_;
  int64_t size_ = 0;
};

}  // namespace privimage::cpu
