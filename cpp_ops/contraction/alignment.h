// Common exponents for the mantissas of operands in blocks.
//
// Within a segment of k, a product needs one exponent for each row of A, and one for each panel of
// B. It is the largest that the row or panel meets there, and mantissas with smaller ones are
// shifted right. dfpjax/numbers/contraction/alignment.py defines the same in plain JAX.
#ifndef DFPJAX_CONTRACTION_ALIGNMENT_H_
#define DFPJAX_CONTRACTION_ALIGNMENT_H_

#include <array>
#include <cstdint>

#include "plan/plan.h"

namespace dfpjax {

inline constexpr int32_t kAbsent = -(1 << 20);      // the exponent of padding
inline constexpr int32_t kOfZeros = -163;           // and less: counts as kAbsent
inline constexpr int32_t kNotFiniteFrom = 1 << 19;  // and more: a NaN or an infinity
// The range of a tile or panel with mantissas in a segment that has no exponent, whose products are
// multiplied by zero. Sums in the units of each segment in turn cannot do that.
inline constexpr int32_t kFarRange = 1 << 20;
inline constexpr int kNegligibleShift = 16;  // makes every mantissa zero

// Running sums of operands in blocks are float32 in units of 2^base. See contraction/running.h.
inline constexpr int32_t kUnset = -(1 << 28);  // base of an empty sum
inline constexpr int32_t kMostAbove = 60;      // a term further above the base raises it
inline constexpr int32_t kMostBelow = 100;     // a term further below the base counts as zero

// Panels of operands in blocks are narrower than those that are packed together.
inline constexpr int kHalves = kPanelColumns / kBlocksPanelColumns;

// Norms that certify chains within a segment, of 32, 16, 8 and 4 products. See `Norms`.
inline constexpr int kSegmentNorms = 4;
struct SegmentNorms {
  alignas(32) float chunk[kSegmentNorms][kSegments];
};

// A tile of A in a block of k, in blocks. Rows that do not exist are absent, but rows 6 and 7
// repeat 4 and 5, as the kernel for narrow panels needs it.
inline constexpr int kSegmentRows = 8;
struct TileSegments {
  alignas(32) int32_t exponents[kSegments][kSegmentRows];
  // By how much the exponent of a row falls from the segment before, and the exponent of the last
  // segment. What is absent has the exponent of the segment before.
  alignas(32) float steps[kSegments][kSegmentRows];
  alignas(32) int32_t units[kSegmentRows];
  int32_t range;  // the largest difference of a row's exponents
  SegmentNorms norms;
  uint64_t not_finite;  // one bit for each row that has an element that is not finite
};

// A panel of kBlocksPanelColumns columns of B in a block of k.
struct PanelSegments {
  alignas(32) int32_t exponents[kSegments];
  float steps[kSegments];  // these three as above
  int32_t unit, range;
  SegmentNorms norms;
  uint64_t not_finite;  // one bit for each column
};

// Thresholds of dithering: that of an element is of_k[its index in the block] ^ of_lane[its row or
// column modulo kThresholdLanes].
inline constexpr int kThresholdLanes = 64;
struct Thresholds {
  std::array<std::array<uint16_t, kBlock>, 2> of_k;    // of A and of B
  std::array<uint16_t, 6 * kThresholdLanes> of_lane;   // repeated, so runs may start anywhere
  std::array<uint32_t, 6 * kThresholdLanes> of_lanes;  // each twice in a word
};
extern const Thresholds kThresholds;

// How mantissas are rounded where they are shifted right.
struct Dithering {
  const uint16_t* of_k;  // null to round to nearest, ties to even
  int64_t first_lane;    // of the first row or column
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_ALIGNMENT_H_
