// Passes over float32 activations, channels last, at the speed of memory: what batch normalization
// and its gradient sum, and the magnitude that decides an exponent.
#ifndef DFPJAX_CHANNEL_SUMS_H_
#define DFPJAX_CHANNEL_SUMS_H_

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace dfpjax {

// x[groups][rows][channels]; results are [groups][channels].
struct ChannelShape {
  int64_t groups, rows, channels;
};

// Sum, sum of squares, least and greatest value over the rows. Sums are float64 over blocks that
// the shape alone decides, so that threads do not matter; without rows the extremes are infinite.
struct Moments {
  float *sums, *squares, *low, *high;
};
bool moments(const ChannelShape& shape, const float* x, const Moments& out,
             const KernelTable& kernels, Executor& executor);

// Over the rows, sums of g and of g * (x - centre); centre is [groups][channels].
bool paired_sums(const ChannelShape& shape, const float* g, const float* x, const float* centre,
                 float* sums, float* products, const KernelTable& kernels, Executor& executor);

// The bits of the largest magnitude, a NaN's or infinity's if there is one; 0 of no numbers.
bool largest_magnitude(const float* x, int64_t count, int32_t* out, const KernelTable& kernels,
                       Executor& executor);

// Mantissas of `bits` bits of a tensor, rounded to nearest even, and its exponent; the same as
// dfpjax.numbers.quantize computes. A tensor with a NaN or an infinity has zeros and kNotFinite.
inline constexpr int32_t kNotFinite = 1 << 20;
bool quantize(const float* x, int64_t count, int bits, int16_t* mantissas, int32_t* exponent,
              const KernelTable& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_CHANNEL_SUMS_H_
