// Quantization of float32 tensors with an exponent for each block.
#ifndef DFPJAX_PASSES_BLOCK_QUANTIZE_H_
#define DFPJAX_PASSES_BLOCK_QUANTIZE_H_

#include <cstdint>
#include <string>

#include "passes/kernels/table.h"
#include "runtime/parallel.h"

namespace dfpjax {

// Tensors [examples][outer][rows][columns], in blocks of block_rows x block_columns numbers of one
// [rows][columns] matrix. Blocks at the end of rows or columns may be smaller. Either block_columns
// is a power of two, or a block has all columns.
struct BlockedShape {
  int64_t examples, outer, rows, columns;
  int64_t block_rows, block_columns;

  int64_t row_blocks() const { return rows / block_rows + (rows % block_rows != 0); }
  int64_t column_blocks() const { return columns / block_columns + (columns % block_columns != 0); }
  int64_t blocks() const { return examples * outer * row_blocks() * column_blocks(); }
};

// What is wrong with a shape or with the bits of mantissas, or an empty string.
std::string check_blocks(const BlockedShape& shape, int64_t bits);

// Computes the mantissas of the tensors and the exponents of their blocks
// [examples][outer][row_blocks][column_blocks], as dfpjax.numbers.format.quantize does, in one
// pass. `seeds` has the seed of each example, for BlockRounding::kSeed.
void quantize_blocks(const BlockedShape& shape, const float* x, int bits, BlockRounding rounding,
                     const uint32_t* seeds, int16_t* mantissas, int32_t* exponents,
                     const PassKernels& kernels, Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_BLOCK_QUANTIZE_H_
