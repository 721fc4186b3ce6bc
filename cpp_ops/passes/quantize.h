// Quantization of a whole float32 tensor, and the magnitude that decides its exponent.
#ifndef DFPJAX_PASSES_QUANTIZE_H_
#define DFPJAX_PASSES_QUANTIZE_H_

#include <cstdint>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// The bits of the largest magnitude, a NaN's or infinity's if there is one; 0 of no numbers.
void largest_magnitude(const float* x, int64_t count, int32_t* out, const PassKernels& kernels,
                       Executor& executor);

// Mantissas of `bits` bits of a tensor, rounded to nearest even, and its exponent; the same as
// dfpjax.numbers.format.quantize computes. A tensor with a NaN or an infinity has zeros and
// kNotFinite.
inline constexpr int32_t kNotFinite = 1 << 20;
void quantize(const float* x, int64_t count, int bits, int16_t* mantissas, int32_t* exponent,
              const PassKernels& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_QUANTIZE_H_
