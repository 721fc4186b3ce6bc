#include "passes/block_quantize.h"

#include <algorithm>

namespace dfpjax {
namespace {

constexpr int64_t kLeastNumbers = int64_t{1} << 15;  // enough to hide the cost of a unit of work

// The hash of dfpjax.numbers.format.rounding.
uint32_t hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  return (x ^ (x >> 15)) * 0x846ca68bu;
}

bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

}  // namespace

std::string check_blocks(const BlockedShape& shape, int64_t bits) {
  if (bits < 2 || bits > 16) return "bits: must be from 2 to 16";
  if (!is_power_of_two(shape.block_rows) || shape.block_rows > 256)
    return "block: must have rows that are a power of two from 1 to 256";
  const bool has_all = shape.block_columns == std::max<int64_t>(shape.columns, 1);
  if (!has_all && (!is_power_of_two(shape.block_columns) || shape.block_columns < 16 ||
                   shape.block_columns > 256))
    return "block: must have columns that are a power of two from 16 to 256, or all columns";
  return "";
}

Loop loop_over_pieces(const BlockedShape& shape, const float* x, const BlockedOperand& to,
                      PieceWork work) {
  if (shape.blocks() == 0) return {0, 1, nullptr};
  const int64_t block_rows = std::min(shape.block_rows, shape.rows);
  // If no block is cut off at the end of a matrix, the matrices of an example are one.
  const bool joined = shape.rows % block_rows == 0;
  const int64_t outer = joined ? 1 : shape.outer;
  const int64_t rows = joined ? shape.outer * shape.rows : shape.rows;
  const int64_t row_blocks = (rows + block_rows - 1) / block_rows;
  // A piece has some rows of blocks or, if these are long, a part of one.
  const int64_t columns =
      std::min(shape.columns,
               (kLeastNumbers / (block_rows * shape.block_columns) + 1) * shape.block_columns);
  const int64_t across = (shape.columns + columns - 1) / columns;
  const int64_t piece_blocks =
      std::clamp<int64_t>(kLeastNumbers / (block_rows * columns), 1, row_blocks);
  const int64_t down = (row_blocks + piece_blocks - 1) / piece_blocks;
  const auto run = [=](int worker, int64_t low, int64_t high) {
    for (int64_t piece = low; piece < high; ++piece) {
      const int64_t matrix = piece / (across * down), example = matrix / outer;
      const int64_t of_matrix = rows * shape.columns;
      BlockedPart part{};
      part.x = x == nullptr ? nullptr : x + matrix * of_matrix;
      part.mantissas = to.mantissas + matrix * of_matrix;
      part.exponents = to.exponents + matrix * row_blocks * shape.column_blocks();
      part.rows = rows;
      part.columns = part.stride = part.x_stride = shape.columns;
      part.exponent_stride = shape.column_blocks();
      part.block_rows = block_rows;
      part.block_columns = shape.block_columns;
      part.bits = to.bits;
      part.rounding = to.rounding;
      part.seed = to.rounding == BlockRounding::kSeed ? hash(to.seeds[example]) : 0;
      part.index = static_cast<uint32_t>(matrix % outer * of_matrix);
      work(worker, part.from(piece / across % down * piece_blocks * block_rows,
                             piece % across * columns, piece_blocks * block_rows, columns));
    }
  };
  const int64_t piece_numbers = std::min(piece_blocks * block_rows, rows) * columns;
  const int64_t grain = std::max<int64_t>(kLeastNumbers / piece_numbers, 1);
  return {shape.examples * outer * down * across, grain, run};
}

void quantize_blocks(const BlockedShape& shape, const float* x, const BlockedOperand& to,
                     const PassKernels& kernels, Executor& executor) {
  const auto quantize = [&](int, const BlockedPart& piece) { kernels.quantize_blocks(piece); };
  run_stages(executor, {{loop_over_pieces(shape, x, to, quantize)}});
}

}  // namespace dfpjax
