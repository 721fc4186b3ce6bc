#include "tests/reference_alignment.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dfpjax {
namespace {

constexpr int32_t kNaN = 1 << 19;

uint32_t hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  return (x ^ (x >> 15)) * 0x846CA68Bu;
}

// mantissa / 2^shift, rounded.
int32_t shifted(int32_t mantissa, int64_t shift, bool dithered, bool panels, int64_t row,
                int64_t k) {
  if (shift >= 16) return 0;
  if (shift <= 0) return mantissa;
  if (!dithered)
    return static_cast<int32_t>(std::nearbyint(std::ldexp(mantissa, static_cast<int>(-shift))));
  const uint32_t of_k = hash(static_cast<uint32_t>(k % kBlock + (panels ? kBlock : 0))) >> 16;
  const uint32_t of_row = hash(static_cast<uint32_t>(2 * kBlock + row % 64)) >> 16;
  const auto added = static_cast<int32_t>((of_k ^ of_row) >> (16 - shift));
  return static_cast<int32_t>(
      std::floor(std::ldexp(std::min(mantissa + added, 32767), static_cast<int>(-shift))));
}

}  // namespace

AlignedRows align_rows(Matrix* mantissas, const Matrix& exponents, int64_t tile, bool panels,
                       bool dithered) {
  const auto rows = static_cast<int64_t>(mantissas->size());
  const int64_t size = rows == 0 ? 0 : static_cast<int64_t>(exponents[0].size());
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  AlignedRows result;
  result.exponents.assign(rows, std::vector<int32_t>(blocks * kSegments, kNothing));
  result.lost.assign(rows, std::vector<bool>(blocks));
  result.wide.assign((rows + tile - 1) / tile, std::vector<bool>(blocks));
  const int64_t step = panels ? tile : 1;
  for (int64_t r0 = 0; r0 < rows; r0 += step)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t r1 = std::min(r0 + step, rows), k0 = block * kBlock;
      const int64_t k1 = std::min<int64_t>(k0 + kBlock, size);
      std::vector<int32_t> most(kSegments, kNothing);
      int32_t least = kNaN, largest = kNothing;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t k = k0; k < k1; ++k) {
          const int32_t e = exponents[r][k];
          if (panels && e >= kNaN) {
            result.lost[r][block] = true;
            continue;
          }
          int32_t& of_segment = most[(k - k0) / kSegment];
          of_segment = std::max(of_segment, e);
          largest = std::max(largest, e);
          if (e > -149) least = std::min(least, e);
        }
      const bool wide = least < kNaN && largest - least > 6;
      if (wide) result.wide[r0 / tile][block] = true;
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t segment = 0; segment < kSegments; ++segment)
          result.exponents[r][block * kSegments + segment] = wide ? most[segment] : largest;
        for (int64_t k = k0; k < k1; ++k) {
          const int32_t e = exponents[r][k];
          const int64_t to = result.exponents[r][k / kSegment];
          const bool gone = e == kNothing || (panels && e >= kNaN);
          int32_t& m = (*mantissas)[r][k];
          m = gone ? 0 : shifted(m, to - e, dithered, panels, r, k);
        }
      }
    }
  return result;
}

void RunningSum::add(float term, int32_t exponent_a, int32_t exponent_b) {
  if (exponent_a == kNothing || exponent_b == kNothing) return;
  const int64_t exponent = int64_t{exponent_a} + exponent_b;
  if (exponent >= kNaN) {
    total = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (empty) base = exponent;
  empty = false;
  const int64_t above = exponent - base;
  if (above > 60) {
    total = above > 100 ? 0 * total : std::ldexp(total, static_cast<int>(-above));
    base = exponent;
    total += term;
  } else {
    total += above < -100 ? 0.0f : std::ldexp(term, static_cast<int>(above));
  }
}

RunningSum combined(const std::vector<RunningSum>& parts) {
  RunningSum sum;
  for (const RunningSum& part : parts)
    if (!part.empty && (sum.empty || part.base > sum.base)) {
      sum.base = part.base;
      sum.empty = false;
    }
  bool first = true;
  for (const RunningSum& part : parts) {
    const int64_t below = part.empty ? 0 : sum.base - part.base;
    const float term =
        below > 100 ? 0 * part.total : std::ldexp(part.total, static_cast<int>(-below));
    sum.total = first ? term : sum.total + term;
    first = false;
  }
  return sum;
}

}  // namespace dfpjax
