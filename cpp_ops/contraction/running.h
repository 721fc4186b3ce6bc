// Running sums of operands in blocks: float32 in units of 2^base. The base is the largest exponent
// of the first cell, and is raised if that of a later cell is far above. The kernels add the cells.
// dfpjax/numbers/contraction/running.py defines the same in plain JAX.
#ifndef DFPJAX_CONTRACTION_RUNNING_H_
#define DFPJAX_CONTRACTION_RUNNING_H_

#include <cstdint>
#include <cstring>

#include "contraction/alignment.h"

namespace dfpjax {

inline bool is_normal(int32_t exponent) { return -126 <= exponent && exponent <= 127; }

// 2^exponent, which is_normal().
inline float power_of_two(int32_t exponent) {
  const int32_t bits = (exponent + 127) << 23;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// What a partial sum is multiplied by to have the units of another one, whose base is as high or
// higher.
inline float factor_of(int32_t base, int32_t highest) {
  const int64_t below = int64_t{highest} - base;
  return below > kMostBelow ? 0.0f : power_of_two(static_cast<int32_t>(-below));
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_RUNNING_H_
