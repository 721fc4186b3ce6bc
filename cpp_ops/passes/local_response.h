// Local response normalization over the channels, and its gradient.
#ifndef DFPJAX_PASSES_LOCAL_RESPONSE_H_
#define DFPJAX_PASSES_LOCAL_RESPONSE_H_

#include <cstdint>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// out[rows][channels] = x / (k + alpha * sum of x^2 over the channels at most `reach` away)^0.75.
void local_response(const Response& response, int64_t rows, int64_t channels, const float* x,
                    float* out, const PassKernels& kernels, Executor& executor);

// The gradient with respect to x, for the gradient g of the output.
void local_response_gradient(const Response& response, int64_t rows, int64_t channels,
                             const float* g, const float* x, float* out, const PassKernels& kernels,
                             Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_LOCAL_RESPONSE_H_
