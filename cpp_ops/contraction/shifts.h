// Common exponents of packed rows and panels, and the shifts that align mantissas to them.
#ifndef DFPJAX_CONTRACTION_SHIFTS_H_
#define DFPJAX_CONTRACTION_SHIFTS_H_

#include <algorithm>
#include <cstdint>

#include "contraction/alignment.h"
#include "contraction/exponents.h"
#include "contraction/kernels/table.h"

namespace dfpjax {

inline int segment_of(const Run& run) { return static_cast<int>(run.start / kSegment); }

// Removes what is not finite from exponents [count]. Calls lost(i) for each.
template <class F>
void take_finite(int32_t* exponents, int64_t count, F lost) {
  for (int64_t i = 0; i < count; ++i) {
    if (exponents[i] < kNotFiniteFrom) continue;
    exponents[i] = kAbsent;
    lost(i);
  }
}

// The rounding of operand 0, A, or 1, B.
inline Dithering dithering_of(const Exponents& exponents, size_t operand, int64_t first_lane) {
  return {exponents.dithered() ? kThresholds.of_k[operand].data() : nullptr, first_lane};
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_SHIFTS_H_
