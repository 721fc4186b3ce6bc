#include "tests/reference_chains.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace dfpjax {
namespace {

int64_t norm(const Matrix& x, int64_t low, int64_t high, int64_t k0, int64_t k1, int64_t length) {
  int64_t best = 0;
  for (int64_t r = low; r < high; ++r)
    for (int64_t c = k0; c < k1; c += length) {
      int64_t sum = 0;
      for (int64_t k = c; k < c + length; k += 2) {
        const auto square = [&](int64_t i) {
          return i < k1 ? int64_t{x[r][i]} * x[r][i] : int64_t{0};
        };
        sum += ((square(k) + square(k + 1)) >> 8) + 1;
      }
      best = std::max(best, sum);
    }
  return best;
}

}  // namespace

int64_t chain_length(const Matrix& a, int64_t m0, int64_t m1, const Matrix& b, int64_t n0,
                     int64_t n1, int64_t k0, int64_t k1, int64_t longest) {
  for (int64_t length = longest; length > 2; length /= 2) {
    const auto rows = static_cast<float>(norm(a, m0, m1, k0, k1, length));
    const auto columns = static_cast<float>(norm(b, n0, n1, k0, k1, length));
    if (rows * columns < 70367670435840.0f) return length;
  }
  return 2;
}

float converted(int64_t sum, int64_t chain, int fixed_chain, int64_t* saturated) {
  // Two products stay exact, even if both are (-32768)^2, which exceeds an int32.
  const bool exact = fixed_chain == 0 && chain == 2;
  if (exact || sum == static_cast<int32_t>(sum)) return static_cast<float>(sum);
  if (fixed_chain == 0) std::abort();  // the certificate is wrong
  ++*saturated;
  using Limits = std::numeric_limits<int32_t>;
  return static_cast<float>(std::clamp<int64_t>(sum, Limits::min(), Limits::max()));
}

float scale(float total, int64_t e) {
  if (e >= (int64_t{1} << 19)) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>(
      std::ldexp(static_cast<double>(total), static_cast<int>(std::clamp<int64_t>(e, -400, 400))));
}

}  // namespace dfpjax
