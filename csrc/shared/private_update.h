// The last pass of a private step: what it reads and writes, and what it does to one parameter.
#pragma once

#include <cmath>
#include <cstdint>

#include "shared/chacha20.h"
#include "shared/gaussian.h"

namespace privimage {

// The numbers of one step. With gradient g = scale (sum + noise), in the order of the arithmetic:
//
//   momentum  <- momentum_decay momentum + gradient_weight g
//   second    <- second_decay second + (1 - second_decay) g²                  (Adam only)
//   direction  = momentum / (second_correction √second + epsilon), or momentum
//   parameter <- keep parameter - step_size direction
//   average   <- average + average_weight (parameter - average)               (if there is one)
//
// They are float64 here and rounded to float32 where they meet the parameters, as PyTorch does.
struct UpdateRule {
  double noise_std;  // in grid steps
  double scale;      // of the gradient a grid step
  double keep;
  double momentum_decay;
  double gradient_weight;
  double second_decay;
  double second_correction;
  double epsilon;
  double step_size;
  double average_weight;
};

// Those after the scale may differ from step to step. They lie in memory in this order, and are
// read when the pass runs.
constexpr int kStepNumbers = 8;
PRIVIMAGE_HOST_DEVICE UpdateRule read_rule(double noise_std, double scale, const double* numbers) {
  return {noise_std,  scale,      numbers[0], numbers[1], numbers[2],
          numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]};
}

struct PrivateUpdate {
  const int64_t* clipped_sum;  // [parameters], in grid steps
  int64_t first_index;         // global index of parameters[0]
  int64_t count;
  float* parameters;     // [parameters]
  float* momentum;       // [parameters]
  float* second_moment;  // [parameters], or null: no division by its root
  float* average;        // [parameters], or null
  UpdateRule rule;
};

// `noise` is the Gaussian integer of parameter i of this step.
template <bool kAdam, bool kAverage>
PRIVIMAGE_HOST_DEVICE void update_parameter(const PrivateUpdate& job, int64_t i, int64_t noise) {
  const UpdateRule& rule = job.rule;
  // Exact up to here: only now does the released integer become a float.
  const int64_t released = job.clipped_sum[i] + noise;
  const float gradient = static_cast<float>(signed_to_double(released) * rule.scale);
  const float momentum = static_cast<float>(rule.momentum_decay) * job.momentum[i] +
                         static_cast<float>(rule.gradient_weight) * gradient;
  job.momentum[i] = momentum;
  float direction = momentum;
  if (kAdam) {
    const float second = static_cast<float>(rule.second_decay) * job.second_moment[i] +
                         static_cast<float>(1.0 - rule.second_decay) * (gradient * gradient);
    job.second_moment[i] = second;
    direction = momentum / (static_cast<float>(rule.second_correction) * sqrtf(second) +
                            static_cast<float>(rule.epsilon));
  }
  const float parameter = static_cast<float>(rule.keep) * job.parameters[i] -
                          static_cast<float>(rule.step_size) * direction;
  job.parameters[i] = parameter;
  if (kAverage) {
    const float average = job.average[i];
    job.average[i] = average + static_cast<float>(rule.average_weight) * (parameter - average);
  }
}

// What one GPU thread does: the eight parameters whose noise comes from one ChaCha20 block. They
// lie 16 apart, so that each half of a warp reads and writes 16 neighbours at a time.
template <bool kAdam, bool kAverage>
PRIVIMAGE_HOST_DEVICE void update_block(const PrivateUpdate& job, const uint32_t key[8],
                                        uint64_t step, int64_t block) {
  const int64_t start = block / kLanes * kTile + block % kLanes - job.first_index;
  if (start >= job.count) return;
  uint32_t words[2 * kSlots];
  chacha20_block(key, static_cast<uint64_t>(block), step, words);
  PRIVIMAGE_UNROLL
  for (int slot = 0; slot < kSlots; slot += 2) {
    const uint32_t* word = words + 2 * slot;
    double noise[2];
    gaussian_pair({word[0], word[1]}, {word[2], word[3]}, noise[0], noise[1]);
    PRIVIMAGE_UNROLL
    for (int which = 0; which < 2; ++which) {
      const int64_t i = start + kLanes * (slot + which);
      if (i < 0 || i >= job.count) continue;
      const int64_t integer = round_to_integer(job.rule.noise_std * noise[which]);
      update_parameter<kAdam, kAverage>(job, i, integer);
    }
  }
}

}  // namespace privimage
