// Maximum over windows of images in NHWC, and its gradient.
#ifndef DFPJAX_PASSES_POOLING_H_
#define DFPJAX_PASSES_POOLING_H_

#include <cstdint>
#include <string>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Along one spatial axis: output i sees inputs [i * stride - padding, ... + window) that exist.
struct PoolAxis {
  int64_t in, out, window, stride, padding;
};

struct Pool {
  int64_t images, channels;
  PoolAxis height, width;
};

inline constexpr int64_t kMostTaps = 1024;  // pixels in a window

// What is wrong with it, or an empty string. Every window must hold a pixel.
std::string check_pool(const Pool& pool);

// out[images][height.out][width.out][channels] of x[images][height.in][width.in][channels].
void max_pool(const Pool& pool, const float* x, float* out, const PassKernels& kernels,
              Executor& executor);

// The gradient by x, for the gradient g of the output: of equal pixels the first one gets it. Where
// a window holds a NaN, or infinities alone, it is that of an image with -infinity around it.
void max_pool_gradient(const Pool& pool, const float* g, const float* x, float* out,
                       const PassKernels& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_POOLING_H_
