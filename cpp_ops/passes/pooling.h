// Maximum over windows of images in NHWC, and its gradient.
#ifndef DFPJAX_PASSES_POOLING_H_
#define DFPJAX_PASSES_POOLING_H_

#include <cstdint>
#include <string>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Returns what is wrong with the pool, or an empty string. Every window must contain a pixel.
std::string check_pool(const Pool& pool);

// Computes out[images][height.out][width.out][channels] from
// x[images][height.in][width.in][channels].
void max_pool(const Pool& pool, const float* x, float* out, const PassKernels& kernels,
              Executor& executor);

// The gradient with respect to x, for the gradient g of the output. Of equal pixels the first one
// gets it. If a window holds a NaN, or only infinities, the result is the same as for an image that
// is padded with -infinity.
void max_pool_gradient(const Pool& pool, const float* g, const float* x, float* out,
                       const PassKernels& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_POOLING_H_
