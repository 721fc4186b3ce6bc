#include "tests/reference_alignment.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dfpjax {
namespace {

constexpr int32_t kNaN = 1 << 19;
constexpr int32_t kOfZeros = -163;  // and less: no exponent

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

bool is_lost(int32_t exponent) { return exponent >= kNaN; }

bool is_absent(int32_t exponent) { return exponent <= kOfZeros || is_lost(exponent); }

AlignedRows align_rows(Matrix* mantissas, const Matrix& exponents, bool panels, bool dithered) {
  const auto rows = static_cast<int64_t>(mantissas->size());
  const int64_t size = rows == 0 ? 0 : static_cast<int64_t>(exponents[0].size());
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  AlignedRows result;
  result.exponents.assign(rows, std::vector<int32_t>(blocks * kSegments, kNothing));
  result.lost.assign(rows, std::vector<bool>(blocks));
  const int64_t step = panels ? kBlocksPanelColumns : 1;
  for (int64_t r0 = 0; r0 < rows; r0 += step)
    for (int64_t k0 = 0; k0 < size; k0 += kSegment) {
      const int64_t r1 = std::min(r0 + step, rows), k1 = std::min<int64_t>(k0 + kSegment, size);
      int32_t largest = kNothing;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t k = k0; k < k1; ++k)
          if (is_lost(exponents[r][k]))
            result.lost[r][k0 / kBlock] = true;
          else if (!is_absent(exponents[r][k]))
            largest = std::max(largest, exponents[r][k]);
      for (int64_t r = r0; r < r1; ++r) {
        result.exponents[r][k0 / kSegment] = largest;
        for (int64_t k = k0; k < k1; ++k) {
          const int32_t e = exponents[r][k];
          int32_t& m = (*mantissas)[r][k];
          if (!is_absent(e))
            m = shifted(m, int64_t{largest} - e, dithered, panels, r, k);
          else if (largest != kNothing)
            m = 0;
        }
      }
    }
  return result;
}

int32_t product_exponent(int32_t a, int32_t b) {
  return is_absent(a) || is_absent(b) ? kNothing : a + b;
}

std::vector<float> RunningSum::factors(const std::vector<int32_t>& exponents) {
  std::vector<float> result(exponents.size());
  const int32_t top = *std::max_element(exponents.begin(), exponents.end());
  if (top == kNothing) return result;
  if (empty) {
    base = top;
    empty = false;
  } else if (top > base + 60) {
    const int64_t above = top - base;
    total = above > 100 ? 0 * total : std::ldexp(total, static_cast<int>(-above));
    base = top;
  }
  for (size_t i = 0; i < exponents.size(); ++i) {
    const int64_t above = exponents[i] - base;
    if (exponents[i] != kNothing && above >= -100)
      result[i] = std::ldexp(1.0f, static_cast<int>(above));
  }
  return result;
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
