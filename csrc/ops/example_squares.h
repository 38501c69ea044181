// The squared norms of examples on a GPU, whose kernels write them in slots: where the slots lie,
// and how they are added up.
#pragma once

#include <optional>

#include "kernels/scaled_sum.h"
#include "ops/op.h"

namespace privimage {

inline Tensor new_doubles(const Tensor& beside, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(beside, std::vector<int64_t>(shape), ScalarType::Double);
}

inline double* doubles(const Tensor& tensor) {
  return static_cast<double*>(tensor.mutable_data_ptr());
}

// Squares [examples], on the device of `beside`.
class ExampleSquares {
 public:
  ExampleSquares(const Tensor& beside, int64_t examples)
      : total_(new_doubles(beside, {examples})) {}

  // The slots [examples, count] that the kernels of one launch or more write all of. A single one
  // is the total: there is nothing to add up.
  double* slots(int64_t count) {
    if (count != 1) slots_ = new_doubles(total_, {total_.size(0), count});
    return doubles(slots_ ? *slots_ : total_);
  }

  // Queues what is left to do once they have; returns the CUDA error code, 0 for none.
  int add_up(void* stream) const {
    if (!slots_) return 0;
    return cuda::launch_row_sums(doubles(*slots_), slots_->size(0), slots_->size(1),
                                 doubles(total_), stream);
  }

  const Tensor& total() const { return total_; }

 private:
  const Tensor total_;
  std::optional<Tensor> slots_;
};

}  // namespace privimage
