#include "contraction/scaling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "contraction/alignment.h"

namespace dfpjax {
namespace {

bool constant(const std::vector<Dim>& dims, int64_t Dim::* stride) {
  return std::all_of(dims.begin(), dims.end(), [=](const Dim& d) { return d.*stride == 0; });
}

}  // namespace

// Multiplies in double, which is exact, so only the conversion rounds. Beyond the clamp every total
// other than 0 (an integer below 2^128) overflows or vanishes.
float scale_once(float total, int64_t e) {
  if (e >= kNotFiniteFrom) return std::numeric_limits<float>::quiet_NaN();
  const int64_t bits = (std::clamp<int64_t>(e, -400, 400) + 1023) << 52;
  double factor;  // 2^e from its bits, for speed: exponents per column need one per output
  std::memcpy(&factor, &bits, sizeof factor);
  return static_cast<float>(static_cast<double>(total) * factor);
}

Scaling::Scaling(const Part& part, const int32_t* ea, const int32_t* eb)
    : ea_(ea),
      eb_(eb),
      ea_g_(part.g, &Dim::exp_a, nullptr),
      ea_m_(part.m, &Dim::exp_a, nullptr),
      ea_n_(part.n, &Dim::exp_a, nullptr),
      eb_g_(part.g, &Dim::exp_b, nullptr),
      eb_n_(part.n, &Dim::exp_b, nullptr),
      rows_share_ea_(constant(part.n, &Dim::exp_a)) {
  const bool uniform = constant(part.g, &Dim::exp_a) && constant(part.m, &Dim::exp_a) &&
                       constant(part.g, &Dim::exp_b) && constant(part.n, &Dim::exp_b) &&
                       rows_share_ea_;
  // Sums of operands in blocks have bases in place of these exponents.
  const int64_t e = part.in_blocks ? 0 : int64_t{ea[0]} + eb[0];
  is_factor_ = uniform && -126 <= e && e <= 127;
  factor_ = is_factor_ ? std::ldexp(1.0f, static_cast<int>(e)) : 1.0f;
}

void Scaling::apply(int64_t g, int64_t m, int64_t low, int64_t high, const int64_t* offsets,
                    float* row) const {
  const int32_t* ea = ea_ + ea_g_.offset(g) + ea_m_.offset(m);
  const int32_t* eb = eb_ + eb_g_.offset(g);
  constexpr int64_t kStep = 64;
  int64_t at[kStep], e[kStep];
  for (int64_t start = low; start < high; start += kStep) {
    const int64_t end = std::min(start + kStep, high), count = end - start;
    std::fill(e, e + count, ea[0]);
    if (!rows_share_ea_) {
      ea_n_.offsets(start, end, 0, at);
      for (int64_t i = 0; i < count; ++i) e[i] = ea[at[i]];
    }
    eb_n_.offsets(start, end, 0, at);
    for (int64_t i = 0; i < count; ++i) {
      float& y = row[offsets[start - low + i]];
      y = scale_once(y, e[i] + eb[at[i]]);
    }
  }
}

}  // namespace dfpjax
