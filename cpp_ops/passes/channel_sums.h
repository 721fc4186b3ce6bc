// Passes over tensors whose last axis is the channels, with results for each channel, at the speed
// of memory. They serve batch normalization, its gradient and the rectified sum that follows it.
#ifndef DFPJAX_PASSES_CHANNEL_SUMS_H_
#define DFPJAX_PASSES_CHANNEL_SUMS_H_

#include <cstdint>

#include "passes/channel_blocks.h"
#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Tensors are [groups][rows][channels]; numbers for each channel are [groups][channels].

// The sum, the sum of squares, the least and the greatest value over the rows. Sums are float64
// over blocks that depend on the shape alone, so the number of threads does not matter. If a number
// is NaN, all four are NaN. Without rows the extremes are infinite.
struct Moments {
  float *sums, *squares, *low, *high;
};
void moments(const ChannelShape& shape, const float* x, const Moments& out,
             const PassKernels& kernels, Executor& executor);

// The sums of g and of g * (x - centre) over the rows. `scale` and `shift` may be null; otherwise g
// counts only where (x - centre) * scale + shift is positive.
struct Paired {
  const float *g, *x, *centre, *scale, *shift;
};
void paired_sums(const ChannelShape& shape, const Paired& in, float* sums, float* products,
                 const PassKernels& kernels, Executor& executor);

// The sums of x over the rows, where it counts as zero unless `positive`.
void masked_sums(const ChannelShape& shape, const float* x, const bool* positive, float* sums,
                 const PassKernels& kernels, Executor& executor);

// Computes y = max((x - mean) * scale + shift + residual, 0), whether it is positive (unless null),
// and its least and greatest value as in Moments, except that the greatest is 0 without rows. The
// product and its addition to the shift are rounded once, here and above.
struct Rectified {
  const float *x, *residual, *mean, *scale, *shift;
};
struct RectifiedSum {
  float* y;
  bool* positive;
  float *low, *high;
};
void rectified_sum(const ChannelShape& shape, const Rectified& in, const RectifiedSum& out,
                   const PassKernels& kernels, Executor& executor);

// Stores the extremes of channels, given the least values without NaNs, and the bits of the
// greatest.
void store_extremes(int64_t channels, const float* least, const int32_t* greatest_bits, float* low,
                    float* high);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_CHANNEL_SUMS_H_
