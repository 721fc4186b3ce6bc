// The kernels of passes, as a table of functions for each kind of vectors.
#ifndef DFPJAX_PASSES_KERNELS_TABLE_H_
#define DFPJAX_PASSES_KERNELS_TABLE_H_

#include <cstdint>

#include "isa/isa.h"

namespace dfpjax {

// g and x are rows [rows][channels]; the others have one number per channel.
struct PairedRows {
  const float *g, *x, *centre;
  // May be null. Otherwise g counts as zero unless (x - centre) * scale + shift > 0, rounded as
  // below.
  const float *scale, *shift;
  double *sums, *products;

  PairedRows from(int64_t channel) const {
    const bool rectified = scale != nullptr;
    return {g + channel,
            x + channel,
            centre + channel,
            rectified ? scale + channel : nullptr,
            rectified ? shift + channel : nullptr,
            sums + channel,
            products + channel};
  }
};

// In normalizations and their gradients, a product and the addition that follows it are rounded
// once, as by a fused multiply-add: XLA contracts them on CPUs.

// x, residual, out and positive are rows [rows][channels]; the others have one number per channel.
struct RectifiedRows {
  const float *x, *residual, *mean, *scale, *shift;
  float* out;
  bool* positive;  // may be null
  float* low;
  int32_t* high_bits;
  int64_t stride;      // from one row to the next
  int64_t out_stride;  // the same of `out`

  // Always inlined, since each path compiles them with its own flags.
  [[gnu::always_inline]] RectifiedRows from(int64_t row, int64_t channel) const {
    RectifiedRows at = *this;
    at.x += row * stride + channel;
    if (out != nullptr) at.out += row * out_stride + channel;
    if (positive != nullptr) at.positive += row * stride + channel;
    at.mean += channel;
    at.scale += channel;
    at.shift += channel;
    if (residual == nullptr) return at;  // and there are no extremes
    at.residual += row * stride + channel;
    at.low += channel;
    at.high_bits += channel;
    return at;
  }
};

// g, x and out are rows [rows][channels]; the others have one number per channel.
struct GradientRows {
  const float *g, *x, *scale, *offset, *slope;
  // May be null. Otherwise g counts as zero unless (x - mean) * scale + shift > 0.
  const float *mean, *shift;
  float* out;
  int64_t stride;      // from one row of g and x to the next
  int64_t out_stride;  // the same of `out`

  [[gnu::always_inline]] GradientRows from(int64_t row, int64_t channel) const {
    GradientRows at = *this;
    at.g += row * stride + channel;
    at.x += row * stride + channel;
    if (out != nullptr) at.out += row * out_stride + channel;
    at.scale += channel;
    at.offset += channel;
    at.slope += channel;
    if (mean == nullptr) return at;
    at.mean += channel;
    at.shift += channel;
    return at;
  }
};

// x, positive and out are rows [rows][channels].
struct MaskedRows {
  const float* x;
  const bool* positive;  // where it is false, x counts as zero
  float* out;
  int64_t stride;      // from one row of x and positive to the next
  int64_t out_stride;  // the same of `out`

  [[gnu::always_inline]] MaskedRows from(int64_t row, int64_t channel) const {
    MaskedRows at = *this;
    at.x += row * stride + channel;
    at.positive += row * stride + channel;
    if (out != nullptr) at.out += row * out_stride + channel;
    return at;
  }
};

// One spatial axis. Output i covers those inputs of [i * stride - padding, ... + window) that
// exist.
struct PoolAxis {
  int64_t in, out, window, stride, padding;
};

// Windows over images [images][height.in][width.in][channels].
struct Pool {
  int64_t images, channels;
  PoolAxis height, width;
};
inline constexpr int64_t kMostTaps = 1024;  // inputs in a window

// Rows of maxima over windows, where each row may be a part of one output's channels, one output or
// several.
struct PooledRows {
  const Pool* pool;
  const float* x;
  int64_t first;   // index of the first number in [images][height.out][width.out][channels]
  int64_t stride;  // from one row to the next
  float* out;
  int64_t out_stride;  // the same of `out`

  [[gnu::always_inline]] PooledRows from(int64_t row, int64_t channel) const {
    PooledRows at = *this;
    at.first += row * stride + channel;
    if (out != nullptr) at.out += row * out_stride + channel;
    return at;
  }
};

// A row of inputs of an image, for which the gradient is computed.
struct PoolGradientRow {
  const Pool* pool;
  int64_t row;
  const float* g;         // cotangents [height.out][width.out][channels]
  const int32_t* inputs;  // of row i of outputs, what greatest_of_windows gives, is at i % slots
  int64_t slots;
  float* out;   // [width.in][channels]
  bool stream;  // whether stores bypass the caches; each vector of `out` is aligned then
};

// Divides x by (k + alpha * sum of x^2 over the channels at most `reach` away)^0.75.
struct Response {
  int64_t reach;
  float k, alpha;
};
// The kernels of local response normalization need memory: kResponseRows rows of response_row
// numbers, zero at first. Rows are longer than the channels, since vectors read and write beyond
// these.
inline constexpr int64_t kResponseRows = 3;
inline int64_t response_row(int64_t channels, int64_t reach) { return channels + 2 * reach + 16; }

// How quantization rounds magnitudes: kNearest to even on ties, kBiased up if one of the two
// highest dropped bits is set, kTruncate toward zero. kSeed and kOwnBits are stochastic: up with
// the probability of the dropped fraction. Their random bits are a hash of the flat index and of a
// seed or the number itself.
enum class BlockRounding { kNearest, kBiased, kTruncate, kSeed, kOwnBits };

// The exponent of a block with a NaN or an infinity is kNotFinite - (bits - 2).
inline constexpr int32_t kNotFinite = 1 << 20;

// A part of a matrix, in blocks with an exponent each. The last blocks of its rows and columns may
// be smaller.
struct BlockedPart {
  const float* x;  // null where the numbers are yet to be produced
  int16_t* mantissas;
  int32_t* exponents;
  int64_t rows, columns, block_rows, block_columns;
  int64_t stride;           // from one row of mantissas to the next
  int64_t x_stride;         // the same of x; equals `stride` if blocks have all columns
  int64_t exponent_stride;  // from one row of blocks to the next
  int bits;
  BlockRounding rounding;
  uint32_t seed;   // hashed
  uint32_t index;  // the flat index of the first number in its tensor, modulo 2^32

  // Always inlined, since each path compiles them with its own flags.
  [[gnu::always_inline]] int64_t row_blocks() const { return (rows + block_rows - 1) / block_rows; }
  [[gnu::always_inline]] int64_t column_blocks() const {
    return (columns + block_columns - 1) / block_columns;
  }
  [[gnu::always_inline]] int64_t rows_of(int64_t row_block) const {
    const int64_t left = rows - row_block * block_rows;
    return left < block_rows ? left : block_rows;
  }
  // The part from this row and column on, with at most so many rows and columns. It begins with a
  // block.
  [[gnu::always_inline]] BlockedPart from(int64_t row, int64_t column, int64_t most_rows,
                                          int64_t most_columns) const {
    BlockedPart part = *this;
    const int64_t offset = row * stride + column;
    if (x != nullptr) part.x += row * x_stride + column;
    part.mantissas += offset;
    part.index += static_cast<uint32_t>(offset);
    part.exponents += row / block_rows * exponent_stride + column / block_columns;
    part.rows = rows - row < most_rows ? rows - row : most_rows;
    part.columns = columns - column < most_columns ? columns - column : most_columns;
    return part;
  }
};

struct PassKernels {
  // For each channel of rows [rows][channels]: adds to its sum and sum of squares, and updates its
  // least and greatest value, which ignore NaNs.
  void (*moments)(const float* x, int64_t rows, int64_t channels, double* sums, double* squares,
                  float* low, float* high);
  // Likewise adds to the sums of g and of g * (x - centre).
  void (*paired_sums)(const PairedRows& at, int64_t rows, int64_t channels);
  // Adds to the sums of x where it counts.
  void (*masked_sums)(const MaskedRows& at, int64_t rows, int64_t channels, double* sums);
  // Computes out = max((x - mean) * scale + shift, 0), where a NaN stays a NaN, and whether it is
  // positive.
  void (*rectified)(const RectifiedRows& at, int64_t rows, int64_t channels);
  // Computes out = max((x - mean) * scale + shift + residual, 0), and whether it is positive. For
  // each channel, updates the least value, which ignores NaNs, and the bits of the greatest, where
  // a NaN counts as the greatest.
  void (*rectified_sum)(const RectifiedRows& at, int64_t rows, int64_t channels);
  // Computes out = slope * x + (g * scale + offset), the gradient of a normalization.
  void (*gradient)(const GradientRows& at, int64_t rows, int64_t channels);
  // Computes out = x where it counts, and 0 elsewhere.
  void (*masked)(const MaskedRows& at, int64_t rows, int64_t channels);
  // Returns the greatest of the bits of the numbers without their signs. It is at least the bits of
  // infinity if not all numbers are finite.
  int32_t (*largest_magnitude)(const float* x, int64_t count);
  // out = x * first * second, rounded to the nearest, ties to even, and clamped to +-limit.
  void (*quantize)(const float* x, int64_t count, float first, float second, int32_t limit,
                   int16_t* out);
  // Computes mantissas and exponents.
  void (*quantize_blocks)(const BlockedPart& part);
  // Maxima over windows, or NaN if a value is NaN: `columns` numbers from the first one of each row
  // on.
  void (*max_of_windows)(const PooledRows& at, int64_t rows, int64_t columns);
  // For each channel of the windows of row i of outputs: the number of the greatest input, counted
  // row by row from the window's first. It is the first one of several, and -1 if none exists where
  // an image that is padded with -infinity has the greatest.
  void (*greatest_of_windows)(const Pool& pool, const float* image, int64_t i, int32_t* inputs);
  // Adds up the cotangents of those windows whose greatest input is the one at hand, in the order
  // of the windows.
  void (*pool_gradient)(const PoolGradientRow& at);

  // The normalized pixels [rows][channels] (see Response), and the gradient with respect to x for
  // the gradient g of the result.
  void (*local_response)(const Response& response, const float* x, int64_t rows, int64_t channels,
                         float* memory, float* out);
  void (*local_response_gradient)(const Response& response, const float* g, const float* x,
                                  int64_t rows, int64_t channels, float* memory, float* out);
};

// The path must be usable.
const PassKernels& pass_kernels(Isa isa);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_KERNELS_TABLE_H_
