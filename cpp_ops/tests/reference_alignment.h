// Common exponents for operands in blocks, and sums of terms with exponents of their own, in plain
// loops.
#ifndef DFPJAX_TESTS_REFERENCE_ALIGNMENT_H_
#define DFPJAX_TESTS_REFERENCE_ALIGNMENT_H_

#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace dfpjax {

// Values of one operand for one g: [rows][K].
using Matrix = std::vector<std::vector<int32_t>>;

inline constexpr int32_t kNothing = -(1 << 20);  // the exponent of padding

bool is_lost(int32_t exponent);    // the element is not finite
bool is_absent(int32_t exponent);  // the element takes no part

struct AlignedRows {
  Matrix exponents;                     // [rows][segments], the same for all rows of a panel
  std::vector<std::vector<bool>> lost;  // [rows][blocks]: an element is not finite
};

// Aligns mantissas with these exponents: each row by itself or, for panels, the rows of a panel
// together.
AlignedRows align_rows(Matrix* mantissas, const Matrix& exponents, bool panels, bool dithered);

// The exponent of a product, kNothing if a factor has none.
int32_t product_exponent(int32_t a, int32_t b);

struct RunningSum {
  float total = 0;
  int64_t base = 0;
  bool empty = true;

  // Sets or raises the base for terms with these exponents. Returns what to multiply each by.
  std::vector<float> factors(const std::vector<int32_t>& exponents);
  int64_t exponent() const { return empty ? 0 : base; }
};

RunningSum combined(const std::vector<RunningSum>& parts);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_ALIGNMENT_H_
