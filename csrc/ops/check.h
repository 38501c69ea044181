// Sentences for arguments that an op can't take. The Python functions check first and say more;
// these guard against calls of torch.ops.privimage that go around them.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace privimage {

inline void check_positive(double value, const std::string& name) {
  STD_TORCH_CHECK(value > 0.0 && value < 1e300, name, ": expected a finite number above 0, got ",
                  value);
}

}  // namespace privimage
