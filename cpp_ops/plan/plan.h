// A plan: C[g,m,n] = 2^e sum_k A[g,m,k] B[g,k,n] over strided, possibly overlapping operands.
//
// Callers bring convolutions of every kind and dots to this form, so this library knows nothing
// about them.
#ifndef DFPJAX_PLAN_PLAN_H_
#define DFPJAX_PLAN_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

namespace dfpjax {

// The tiles for which a chain length is certified. The arithmetic fixes them, not the machine.
inline constexpr int kTileRows = 6;
inline constexpr int kPanelColumns = 64;
inline constexpr int kBlocksPanelColumns = 32;  // if the operands are in blocks
inline constexpr int kBlock = 256;

// A segment of a block of k. See contraction/alignment.h.
inline constexpr int kSegment = 32;
inline constexpr int kSegments = kBlock / kSegment;

inline constexpr int kMaxDims = 16;    // per group of dimensions
inline constexpr int kMaxWindows = 6;  // bounds-checked coordinates of A

struct Dim {
  int64_t extent;
  int64_t stride_a, stride_b, stride_c;
  int64_t exp_a, exp_b;
  int window;  // index of the window that this dimension moves, or -1
  int64_t coef;
};

// A coordinate of A that may be outside of [0, size); the element is then zero.
struct Window {
  int64_t size, stride_a, offset;
};

inline constexpr int64_t kMostProducts = int64_t{1} << 62;

// kWinogradAlongM: the tiles of Winograd's algorithm lie along M (fprop and dgrad), the taps along
// K. kWinogradAlongK: the other way round (wgrad). See contraction/winograd.h.
enum class Mode : int { kTiles = 0, kLanes = 1, kWinogradAlongM = 2, kWinogradAlongK = 3 };
inline constexpr int kMostTaps = 5;

// Where the exponents of an operand in blocks lie: a function of an element's offset in memory. The
// operand is rows of `columns` elements, in groups of `outer` elements that no block crosses.
struct Grid {
  int64_t outer, columns;
  int64_t block_rows, block_columns;  // powers of two
  bool dithered;                      // how mantissas are rounded where they are aligned
  int64_t outers = 0;                 // groups; decode_plan counts them

  int64_t rows() const { return outer / columns; }
  int64_t block_row_count() const { return (rows() + block_rows - 1) / block_rows; }
  int64_t block_column_count() const { return (columns + block_columns - 1) / block_columns; }
};

struct Part {
  Mode mode;
  // Whether the exponents are those of blocks, and then the grids. Otherwise dimensions have
  // strides of exponents.
  bool in_blocks;
  Grid grid_a, grid_b;
  int64_t base_a, base_b, base_c;
  int64_t blocks_per_split;
  int tile;      // outputs of a Winograd tile along each axis, or 0
  int taps = 0;  // and taps; decode_plan finds them
  // Outermost first, without dimensions of extent 1, except those that move the windows of a
  // Winograd tile.
  std::vector<Dim> g, m, n, k;
  std::vector<Window> windows;
  int64_t G, M, N, K;  // extents of the flattened indices
};

struct BufferSizes {
  int64_t a, b, c, ea, eb;
};

// Returns an empty string, or names the buffer that is not aligned to the size of its elements. No
// stricter alignment is needed.
std::string check_alignment(const int16_t* a, const int16_t* b, const float* c, const int32_t* ea,
                            const int32_t* eb);

// Decodes and validates a plan. Returns an empty string, or what is wrong. After success
// - the parts together have one output for each element of the output buffer, and every address
//   that the plan can reach lies inside its buffer;
// - the parts together have at most kMostProducts multiply-adds, so the numbers of multiply-adds,
//   of outputs and of blocks of k do not overflow;
// - blocks_per_split of a part is at most the number of blocks in the largest possible K.
std::string decode_plan(const int64_t* code, int64_t size, const BufferSizes& sizes,
                        std::vector<Part>* parts);

}  // namespace dfpjax

#endif  // DFPJAX_PLAN_PLAN_H_
