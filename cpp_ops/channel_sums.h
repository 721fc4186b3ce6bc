// Sums over all axes but the channels, which are the last, at the speed of memory: those of batch
// normalization and of its gradient.
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
// the shape alone decides, so that threads do not matter. Where a number is NaN all four are;
// without rows the extremes are infinite.
struct Moments {
  float *sums, *squares, *low, *high;
};
bool moments(const ChannelShape& shape, const float* x, const Moments& out,
             const KernelTable& kernels, Executor& executor);

// Over the rows, sums of g and of g * (x - centre); centre is [groups][channels].
bool paired_sums(const ChannelShape& shape, const float* g, const float* x, const float* centre,
                 float* sums, float* products, const KernelTable& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_CHANNEL_SUMS_H_
