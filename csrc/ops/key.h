// The secret key as the ops take it: a uint8 tensor [32] in the memory of the host.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "ops/check.h"

namespace privimage {

// Writes the key's eight words, little-endian as RFC 8439 has them.
inline void read_key(const torch::stable::Tensor& key, uint32_t words[8]) {
  STD_TORCH_CHECK(key.is_cpu() && key.scalar_type() == torch::headeronly::ScalarType::Byte &&
                      key.numel() == 32 && key.is_contiguous(),
                  "key: expected a contiguous uint8 tensor [32] on the CPU, got ",
                  torch::headeronly::toString(key.scalar_type()), " of ", key.numel(),
                  " values on ", device_of(key));
  const auto* bytes = static_cast<const uint8_t*>(key.const_data_ptr());
  for (int i = 0; i < 8; ++i) {
    words[i] = 0;
    for (int j = 0; j < 4; ++j) words[i] |= static_cast<uint32_t>(bytes[4 * i + j]) << 8 * j;
  }
}

}  // namespace privimage
