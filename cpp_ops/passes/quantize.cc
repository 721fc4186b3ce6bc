#include "passes/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace dfpjax {
namespace {

constexpr int64_t kBlockNumbers = int64_t{1} << 16;  // a unit of work

// floor(log2) of the magnitude with these bits. Zero counts as the smallest positive number.
int32_t floor_log2(int32_t bits) {
  if (bits >= 0x7f800000) return kNotFinite;
  float value;
  bits = std::max(bits, 1);
  std::memcpy(&value, &bits, sizeof value);
  return std::ilogb(value);
}

}  // namespace

void largest_magnitude(const float* x, int64_t count, int32_t* out, const PassKernels& kernels,
                       Executor& executor) {
  std::vector<int32_t> largest(static_cast<size_t>((count + kBlockNumbers - 1) / kBlockNumbers));
  const Loop loop{static_cast<int64_t>(largest.size()), 1, [&](int, int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit) {
                      const int64_t start = unit * kBlockNumbers;
                      largest[static_cast<size_t>(unit)] = kernels.largest_magnitude(
                          x + start, std::min(kBlockNumbers, count - start));
                    }
                  }};
  run_stages(executor, {{loop}});
  *out = 0;
  for (const int32_t bits : largest) *out = std::max(*out, bits);
}

void quantize(const float* x, int64_t count, int bits, int16_t* mantissas, int32_t* exponent,
              const PassKernels& kernels, Executor& executor) {
  int32_t largest = 0;
  largest_magnitude(x, count, &largest, kernels, executor);
  *exponent = floor_log2(largest);
  const bool finite = *exponent != kNotFinite;
  *exponent -= bits - 2;
  // 2^-exponent can be outside of the range of float32, so it is split into two factors.
  const float first = finite ? std::ldexp(1.0F, -*exponent / 2) : 0;
  const float second = finite ? std::ldexp(1.0F, -*exponent - -*exponent / 2) : 0;
  const int32_t limit = (1 << (bits - 1)) - 1;
  const Loop loop{(count + kBlockNumbers - 1) / kBlockNumbers, 1,
                  [&](int, int64_t begin, int64_t end) {
                    const int64_t low = begin * kBlockNumbers;
                    const int64_t high = std::min(end * kBlockNumbers, count);
                    if (finite)
                      kernels.quantize(x + low, high - low, first, second, limit, mantissas + low);
                    else
                      std::fill(mantissas + low, mantissas + high, int16_t{0});
                  }};
  run_stages(executor, {{loop}});
}

}  // namespace dfpjax
