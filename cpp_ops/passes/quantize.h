// Quantization of a whole float32 tensor, and the magnitude that decides its exponent.
#ifndef DFPJAX_PASSES_QUANTIZE_H_
#define DFPJAX_PASSES_QUANTIZE_H_

#include <cstdint>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Writes the bits of the largest magnitude. They belong to a NaN or an infinity if there is one,
// and are 0 if there are no numbers.
void largest_magnitude(const float* x, int64_t count, int32_t* out, const PassKernels& kernels,
                       Executor& executor);

// Computes the mantissas of a tensor, with `bits` bits and rounded to nearest even, and its
// exponent, as dfpjax.numbers.format.quantize does. If the tensor has a NaN or an infinity, the
// mantissas are zero and the exponent is kNotFinite.
void quantize(const float* x, int64_t count, int bits, int16_t* mantissas, int32_t* exponent,
              const PassKernels& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_QUANTIZE_H_
