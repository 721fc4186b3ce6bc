#include "contraction/alignment.h"

namespace dfpjax {
namespace {

// The hash of dfpjax/numbers/format/rounding.py.
constexpr uint16_t threshold(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return static_cast<uint16_t>(x >> 16);
}

constexpr Thresholds make_thresholds() {
  Thresholds result{};
  for (uint32_t operand = 0; operand < 2; ++operand)
    for (uint32_t k = 0; k < kBlock; ++k) result.of_k[operand][k] = threshold(operand * kBlock + k);
  for (uint32_t lane = 0; lane < result.of_lane.size(); ++lane) {
    const uint16_t own = threshold(2 * kBlock + lane % kThresholdLanes);
    result.of_lane[lane] = own;
    result.of_lanes[lane] = own | static_cast<uint32_t>(own) << 16;
  }
  return result;
}

}  // namespace

const Thresholds kThresholds = make_thresholds();

}  // namespace dfpjax
