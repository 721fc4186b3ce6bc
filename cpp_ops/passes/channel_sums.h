// Passes over tensors whose last axis is that of the channels, with results for each channel, at
// the speed of memory: those of batch normalization, of what follows it and of its gradient.
#ifndef DFPJAX_PASSES_CHANNEL_SUMS_H_
#define DFPJAX_PASSES_CHANNEL_SUMS_H_

#include <cstdint>

#include "passes/channel_blocks.h"
#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Tensors are [groups][rows][channels], what there is for each channel is [groups][channels].

// Sum, sum of squares, least and greatest value over the rows. Sums are float64 over blocks that
// the shape alone decides, so that threads do not matter. Where a number is NaN all four are;
// without rows the extremes are infinite.
struct Moments {
  float *sums, *squares, *low, *high;
};
void moments(const ChannelShape& shape, const float* x, const Moments& out,
             const PassKernels& kernels, Executor& executor);

// Over the rows, sums of g and of g * (x - centre). With `scale` and `shift`, g counts only where
// (x - centre) * scale + shift is positive; they may be null.
struct Paired {
  const float *g, *x, *centre, *scale, *shift;
};
void paired_sums(const ChannelShape& shape, const Paired& in, float* sums, float* products,
                 const PassKernels& kernels, Executor& executor);

// y = max((x - mean) * scale + shift + residual, 0), whether it is positive (unless null), and its
// least and greatest value, as in Moments; without rows the greatest is 0.
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

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_CHANNEL_SUMS_H_
