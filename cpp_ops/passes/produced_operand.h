// Passes that compute a tensor and quantize it at once, so that its float32 numbers need not go
// through memory: what is rectified, gradients of normalizations and biases, maxima over windows.
#ifndef DFPJAX_PASSES_PRODUCED_OPERAND_H_
#define DFPJAX_PASSES_PRODUCED_OPERAND_H_

#include <cstdint>

#include "passes/block_quantize.h"
#include "passes/channel_sums.h"
#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Tensors have the shape of the operand, and their last axis is `channels` long: it divides
// shape.columns. In each product and the addition that follows it, there is one rounding.

// Quantizes y = max((x - mean) * scale + shift, 0), where a mean that is null counts as 0 and a
// scale as 1, and writes whether y is positive (unless null). If `out` has extremes, quantizes
// y = max((x - mean) * scale + shift + residual, 0) and writes all that rectified_sum does.
void rectified_operand(const BlockedShape& shape, int64_t channels, const Rectified& in,
                       const BlockedOperand& to, const RectifiedSum& out,
                       const PassKernels& kernels, Executor& executor);

// Quantizes x, where it counts as zero unless `positive`.
void masked_operand(const BlockedShape& shape, const float* x, const bool* positive,
                    const BlockedOperand& to, const PassKernels& kernels, Executor& executor);

// Quantizes slope * x + (g * scale + offset). `mean` and `shift` may be null; otherwise g counts as
// zero unless (x - mean) * scale + shift is positive.
struct Gradient {
  const float *g, *x, *scale, *offset, *slope, *mean, *shift;
};
void gradient_operand(const BlockedShape& shape, int64_t channels, const Gradient& in,
                      const BlockedOperand& to, const PassKernels& kernels, Executor& executor);

// Quantizes the maxima over windows of images x, and writes them to `out` (unless null).
void pooled_operand(const BlockedShape& shape, const Pool& pool, const float* x,
                    const BlockedOperand& to, float* out, const PassKernels& kernels,
                    Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_PRODUCED_OPERAND_H_
