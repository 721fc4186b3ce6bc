// Quantization of float32 tensors with an exponent for each block.
#ifndef DFPJAX_PASSES_BLOCK_QUANTIZE_H_
#define DFPJAX_PASSES_BLOCK_QUANTIZE_H_

#include <cstdint>
#include <functional>
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

// How tensors are quantized, and the mantissas and the exponents of the blocks
// [examples][outer][row_blocks][column_blocks].
struct BlockedOperand {
  int bits;
  BlockRounding rounding;
  const uint32_t* seeds;  // one for each example, for BlockRounding::kSeed
  int16_t* mantissas;
  int32_t* exponents;
};

// Quantizes x, as dfpjax.numbers.format.quantize does, in one pass.
void quantize_blocks(const BlockedShape& shape, const float* x, const BlockedOperand& to,
                     const PassKernels& kernels, Executor& executor);

// The loop that calls work(worker, piece) for all pieces of the tensors: some rows of blocks each
// or, if these are long, a part of one. Its body is a copy of `work`. x may be null.
using PieceWork = std::function<void(int worker, const BlockedPart& piece)>;
Loop loop_over_pieces(const BlockedShape& shape, const float* x, const BlockedOperand& to,
                      PieceWork work);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_BLOCK_QUANTIZE_H_
