// Common exponents for the mantissas of operands in blocks.
//
// A product needs one exponent for each row of A, and one for each panel of B, within a block of k.
// It is the largest that the row or panel meets there, and mantissas with smaller ones are shifted
// right. Where the exponents of a row (or panel) differ by more than kNarrowRange, each segment of
// the block has an exponent of its own. dfpjax/numbers/contraction/alignment.py defines the same in
// plain JAX.
#ifndef DFPJAX_CONTRACTION_ALIGNMENT_H_
#define DFPJAX_CONTRACTION_ALIGNMENT_H_

#include <algorithm>
#include <array>
#include <cstdint>

#include "plan/plan.h"

namespace dfpjax {

inline constexpr int32_t kNarrowRange = 6;
inline constexpr int32_t kAbsent = -(1 << 20);      // the exponent of padding
inline constexpr int32_t kNotFiniteFrom = 1 << 19;  // and more: a NaN or an infinity
inline constexpr int32_t kLeastCounted = -148;      // exponents below do not count in a range
inline constexpr int kNegligibleShift = 16;         // makes every mantissa zero

// The exponents of a row of A or a panel of B, in the segments of a block of k.
struct SegmentExponents {
  std::array<int32_t, kSegments> at;
  bool wide;  // not all the same
};

struct TileExponents {
  std::array<SegmentExponents, kTileRows> rows;
  bool wide;  // of any row
};

struct PanelExponents {
  SegmentExponents shared;
  uint64_t not_finite;  // one bit for each column that has an element that is not finite
};

// Collects the exponents that a row or panel meets.
class ExponentRange {
 public:
  ExponentRange() { most_.fill(kAbsent); }
  void add(int segment, int32_t exponent) {
    most_[static_cast<size_t>(segment)] = std::max(most_[static_cast<size_t>(segment)], exponent);
    if (exponent >= kLeastCounted) least_ = std::min(least_, exponent);
  }
  SegmentExponents exponents() const {
    const int32_t most = *std::max_element(most_.begin(), most_.end());
    SegmentExponents result{most_, least_ < kNotFiniteFrom && most - least_ > kNarrowRange};
    if (!result.wide) result.at.fill(most);
    return result;
  }

 private:
  std::array<int32_t, kSegments> most_;
  int32_t least_ = kNotFiniteFrom;
};

// The shift of mantissas with this exponent.
inline int shift_to(int32_t common, int32_t exponent) {
  return exponent == kAbsent ? kNegligibleShift : std::min(common - exponent, kNegligibleShift);
}

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
