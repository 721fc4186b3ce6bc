// Running sums whose terms have exponents of their own: float32 in units of 2^base, where the base
// is the exponent of the first term. dfpjax/numbers/contraction/running.py defines the same in
// plain JAX.
#ifndef DFPJAX_CONTRACTION_RUNNING_H_
#define DFPJAX_CONTRACTION_RUNNING_H_

#include <cstdint>
#include <cstring>
#include <limits>

#include "contraction/alignment.h"

namespace dfpjax {

inline constexpr int32_t kUnset = -(1 << 28);  // base of an empty sum
inline constexpr int32_t kMostAbove = 60;      // a term further above the base raises it
inline constexpr int32_t kMostBelow = 100;     // a term further below the base counts as zero

inline bool is_normal(int32_t exponent) { return -126 <= exponent && exponent <= 127; }

// 2^exponent, which is_normal().
inline float power_of_two(int32_t exponent) {
  const int32_t bits = (exponent + 127) << 23;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// What a term is multiplied by whose exponent is `above` more than the base; at most kMostAbove.
inline float term_scale(int32_t above) { return above < -kMostBelow ? 0.0f : power_of_two(above); }

// Adds the exponents of A and B.
inline int32_t exponent_of_product(int32_t a, int32_t b) {
  return a == kAbsent || b == kAbsent ? kAbsent : a + b;
}

// How a term is added to a running sum: sum * kept + term * scale.
struct Addition {
  float kept = 1, scale = 0;
};

// Updates the base.
inline Addition add_term(int32_t exponent, int32_t* base) {
  if (exponent <= kAbsent) return {};
  if (exponent >= kNotFiniteFrom) return {1, std::numeric_limits<float>::quiet_NaN()};
  if (*base == kUnset) *base = exponent;
  const int32_t above = exponent - *base;
  if (above <= kMostAbove) return {1, term_scale(above)};
  *base = exponent;
  return {term_scale(-above), 1};
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_RUNNING_H_
