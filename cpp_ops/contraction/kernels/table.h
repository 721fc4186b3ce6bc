// The contraction kernels, as a table of functions for each path.
#ifndef DFPJAX_CONTRACTION_KERNELS_TABLE_H_
#define DFPJAX_CONTRACTION_KERNELS_TABLE_H_

#include <cstdint>

#include "contraction/alignment.h"
#include "isa/isa.h"
#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

// Norms that certify chain lengths, one for each length of 256, 128, ..., 4. The norm of a chunk is
// the sum over its pairs of elements (x, y) of floor((x^2 + y^2) / 2^kNormShift) + 1. For each
// length, Norms has the largest norm of the aligned chunks of this length in the rows (or columns)
// of a tile.
inline constexpr int kNormShift = 8;
inline constexpr float kCertifiedBelow = 70367670435840.0f;  // products of norms: 2^46 - 2^30
inline constexpr int kNorms = 7;
struct Norms {
  int32_t chunk[kNorms];
};
inline constexpr int kChainLengths = kNorms + 1;  // chains of 2 need no norm

// One cell: C[rows, columns] += A[rows, k] B[k, columns] for one tile, panel and k-block. Each
// 32-bit word holds the mantissas of two consecutive k.
struct CellArgs {
  const int32_t* a;  // word (row, k/2) is at row * a_row + (k/2) * a_pair
  int64_t a_row, a_pair;
  const int32_t* b;  // word (k/2, column) is at (k/2) * columns + column
  int32_t columns;   // a multiple of kColumnQuantum
  int32_t rows;      // 1..kTileRows
  int32_t pairs;     // words along k
  int32_t chain;     // words per exact int32 sum
  // May be null. Otherwise the words of B, of up to kMostNarrow columns, in another order: word
  // (k/2, column) is at (k/2) / 4 * 4 * kMostNarrow + column * 4 + (k/2) % 4. Words beyond the
  // columns and k are zero.
  const int32_t* b_quads;
  int32_t narrow;             // the number of columns, if b_quads is not null
  const float* const* in;     // running sums, a pointer per row
  float* const* out;          // may be the same
  const float* final_scales;  // if not null, rows of the result are multiplied by these
  // If not null, what is added to `in` is multiplied by these powers of two, one for each row and
  // one for each column. The products with them are exact. There are no final_scales then.
  const float* row_scales = nullptr;
  const float* column_scales = nullptr;
  float* memory;  // for kTileRows * kPanelColumns numbers
  bool stream;    // `out` is 64-byte aligned and not needed soon: bypass the caches
  // Null if no sum can overflow int32. Otherwise sums are saturated, and this counts the saturated
  // ones.
  int64_t* saturated;
  // Of cells in blocks. If B comes from memory and is used for few rows, the words of it to fetch
  // ahead; else 0.
  int64_t fetch_ahead = 0;
  bool few_rows = false;  // the rows of the product; then 5 or 6 rows run as 3 and 3
  int first_row = 0;      // of those that the kernel runs together
};

// The chains of a cell of operands in blocks, in words, for each panel and segment.
struct SegmentChains {
  alignas(32) int32_t words[kHalves][kSegments];
  int32_t shortest;  // the least of them, or 4 if it is more
};

// What a cell of operands in blocks has besides CellArgs (whose `chain` and `final_scales` it does
// not use). Its columns are those of up to kHalves panels.
struct BlockCellArgs {
  const TileSegments* a;
  const PanelSegments* b;  // for each panel
  const SegmentChains* chains;
  // For each panel and row, the base of the running sums, if there are any. The cell may raise it,
  // and then scales the running sums in place.
  int32_t (*bases)[kSegmentRows];
  float* running;  // these sums, in rows of kPanelColumns; null if they are zeros
  bool finish;     // multiply the results by 2^base
};

inline constexpr int kColumnQuantum = 16;
inline constexpr int kMostNarrow = 4;  // columns of panels for which b_quads are provided

// The number of elements that packing may write beyond the end of packed rows and of `edge`.
inline constexpr int kSlack = 32;

// Runs whose elements are shifted right together: those of run r at point p by shifts[r * stride +
// p]. A shift of kNegligibleShift stands for zeros, which are not read.
struct CutRuns {
  const Run* runs;
  int count;
  const int8_t* shifts;
  int64_t stride;
};

// The rows of points in the grid of an operand in blocks, and the place of a run relative to them.
struct Places {
  const int32_t *first, *row, *column;  // `first` is the first exponent of the point's group
  int32_t columns, rows, row_shift, block_columns, outer_step, last;
};
struct RunPlace {
  int32_t row, column, column_block;
};

// Lanes of operands in blocks. Each product has a scale, which the lanes share.
struct ScaledLanes {
  const int16_t *const *a, *const *b;  // a pointer for each k, none of them null
  const float* scales;                 // that of k is at k * scale_step
  int64_t scale_step;
  int k, lane, end;     // lanes [lane, end)
  bool first;           // start from zero, otherwise from sums * before
  float before, after;  // powers of two; the results are multiplied by `after`
  float* sums;          // of all lanes
};

// The transforms of Winograd's algorithm, F(outputs, 3) along each axis.
enum class Transform {
  kInput,      // patches of A
  kCotangent,  // tiles of B, where the tiles lie along k
  kKernel,     // taps of B, otherwise
  kOutput,     // back from sums to a tile of the result
  kTaps        // back to the result, where the tiles lie along k
};
struct WinogradTile {
  int outputs, taps;  // along each axis: 2 and 3, 4 and 3, or 2 and 5
  int axes;           // 1 or 2
  constexpr int points() const { return outputs + taps - 1; }  // along each axis
  constexpr int power(int extent) const { return axes == 2 ? extent * extent : extent; }
  constexpr int positions() const { return power(points()); }
};
constexpr int extent_before(Transform transform, int outputs, int taps) {
  return transform == Transform::kCotangent ? outputs
         : transform == Transform::kKernel  ? taps
                                            : outputs + taps - 1;
}
constexpr int extent_after(Transform transform, int outputs, int taps) {
  return transform == Transform::kOutput ? outputs
         : transform == Transform::kTaps ? taps
                                         : outputs + taps - 1;
}
inline constexpr int kMostPositions = 36;
inline constexpr float kMostMantissa = 32767;
// Scales of rows and columns further below their base count as zero, so that sums of products of
// two scales are normal numbers. Transformed mantissas with exponents below its negative are zeros.
inline constexpr int32_t kMostBelowBase = 48;
// Of a call, unless they are kernels, whose transforms need no room.
inline constexpr int kMostPatches = 128;
inline constexpr int64_t kPatchBuffer = int64_t{kMostPatches} * kMostPositions * 16;

// The lanes of `count` patches. Element e of patch k is at from[k * elements + e], and is
// multiplied by the number in `scales` with the same index, a power of two or zero.
struct Patches {
  WinogradTile tile;
  Transform transform;
  const int16_t* const* from;
  const float* scales;
  int count, lanes;
};

// Sums of columns [0, columns) at each position, to be transformed back and multiplied by
// 2^(exponent + exponents[column]), which are normal. `columns` is a multiple of kColumnQuantum.
struct WinogradSums {
  WinogradTile tile;
  Transform transform;
  const float* sums;
  int64_t position_stride;
  int columns;
  int32_t exponent;
  const int32_t* exponents;
  float* const* out;  // a pointer for each result, or null
  bool stream;        // they are 64-byte aligned and not needed soon: bypass the caches
};

struct ContractionKernels {
  void (*cell)(const CellArgs& args);
  // Returns false if it did not finish the results because a base is out of a float32's range.
  bool (*cell_in_blocks)(const CellArgs& args, const BlockCellArgs& blocks);
  // Sets the exponents of a tile of up to kTileRows rows, those of segment s at from[s * stride],
  // and what depends on them. Reads kSegmentRows numbers for each segment.
  void (*finish_tile)(const int32_t* from, int64_t stride, int segments, int rows,
                      TileSegments* tile);
  // Sets what depends on the exponents.
  void (*finish_panel)(PanelSegments* panel);
  // The longest chains, of up to 32 products, whose int32 sums cannot overflow.
  void (*certify)(const SegmentNorms& a, const PanelSegments* b, int panels, SegmentChains* chains);

  // Packs rows of k to out[row * stride + j], j in [0, stride). Elements beyond the runs and in the
  // padding of A are zero. Points are rows; runs go along k.
  void (*pack_rows)(const int16_t* base, const Bounds& bounds, const Point* points, int rows,
                    const Run* runs, int run_count, int16_t* out, int64_t stride);
  // Packs words of two k to out[(k/2) * stride + start + i], i within a run, then `padding` zeros
  // after the last run. Points are k; runs go along the rows. `zeros` is at least as long as the
  // longest run, and `edge` twice as long.
  void (*pack_pairs)(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                     const Run* runs, int run_count, const int16_t* zeros, int16_t* edge,
                     int32_t* out, int64_t stride, int padding);
  // pack_rows and pack_pairs with mantissas shifted right. The cut runs cover the same elements as
  // the runs.
  void (*pack_shifted_rows)(const int16_t* base, const Bounds& bounds, const Point* points,
                            int rows, const Run* runs, int run_count, const CutRuns& cut,
                            const Dithering& dithering, int16_t* out, int64_t stride);
  void (*pack_shifted_pairs)(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                             const Run* runs, int run_count, const CutRuns& cut,
                             const Dithering& dithering, const int16_t* zeros, int16_t* edge,
                             int32_t* out, int64_t stride, int padding);
  // Transposes words [16 rows][pairs] to [pairs][16 columns]. Rows of the input are `stride`
  // elements apart, rows of the output `out_stride` words.
  void (*transpose)(const int16_t* rows, int64_t stride, int pairs, int32_t* out,
                    int64_t out_stride);

  // Norms of `count` <= kTileRows rows; k is a multiple of 32.
  void (*norms_rows)(const int16_t* rows, int64_t stride, int count, int k, Norms* out);
  // Norms of words [pairs][stride]: out[row / group] for rows in [0, count). `stride` is at least
  // `count` rounded up to 16, and the words from `count` up to there are zero.
  void (*norms_pairs)(const int32_t* words, int64_t stride, int count, int pairs, int group,
                      Norms* out);
  // The same for segments. The norms of groups are `out_step` bytes apart.
  void (*segment_norms_rows)(const int16_t* rows, int64_t stride, int count, int k,
                             SegmentNorms* out);
  void (*segment_norms_pairs)(const int32_t* words, int64_t stride, int count, int pairs, int group,
                              SegmentNorms* out, int64_t out_step);

  // The exponents of a run at many points.
  void (*look_up)(const int32_t* exponents, const Places& places, const RunPlace& run, int count,
                  int32_t* out);
  // Takes the exponents of a run at points k, and finds the common ones of the segments, and the
  // shifts to these, as shifts_to does. Returns the largest exponent.
  int32_t (*align_points)(const int32_t* from, int k, int32_t* common, int8_t* shifts);
  // most[i] = max(most[i], from[i]).
  void (*raise_exponents)(const int32_t* from, int count, int32_t* most);
  // The largest, or kAbsent.
  int32_t (*largest_exponent)(const int32_t* from, int count);
  // The shifts to `common` (one number if `shared`), which is at least as high. Returns whether any
  // is not zero.
  bool (*shifts_to)(const int32_t* common, bool shared, const int32_t* from, int count,
                    int8_t* out);

  // Adds the products of aligned pairs of k, in ascending order, to sums[lane], or to zero if
  // `first`. `a` has one pointer for each k, none of them null. `b` has words [(k+1)/2][b_stride],
  // none of them kLowestPair.
  void (*lanes)(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k, int lanes,
                bool first, float* sums);
  // The same, but `b` may contain kLowestPair.
  void (*lanes_of_any)(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k,
                       int lanes, bool first, float* sums);
  // Adds products in ascending order of k, each multiplied by its scale, exactly.
  void (*scaled_lanes)(const ScaledLanes& args);
  // sums[i] += other (or other[i]); raises most[i].
  void (*add_exponent)(int32_t other, int count, int32_t* sums, int32_t* most);
  void (*add_exponents)(const int32_t* other, int count, int32_t* sums);
  // The scales of products: 2^(exponents[i] - bases[i]), or 0 if this is more than kMostBelow
  // below. There is only one base if `shared`.
  void (*scales_of)(const int32_t* bases, bool shared, const int32_t* exponents, int count,
                    float* scales);
  // out[i] = scale * ((f0 * p0[i] + f1 * p1[i]) + ...); the partial sums p0, p1, ... are `stride`
  // apart. The factors are powers of two; null stands for ones.
  void (*combine)(const float* partial, int64_t stride, int64_t parts, int64_t count,
                  const float* factors, float scale, float* out);

  // Writes lane i of the transform of one patch at position p to out[p * stride + i].
  void (*transform_patch)(const Patches& patch, float* out, int64_t stride);
  // Quantizes `count` numbers, a multiple of kColumnQuantum, at each position, multiplied by the
  // position's norm. Sets their exponents; kAbsent if all are zero.
  void (*quantize_rows)(const float* from, int64_t stride, const float* norms, int positions,
                        int count, int16_t* out, int64_t out_stride, int32_t* exponents,
                        int64_t exponent_stride);
  // Transforms patches, at most kMostPatches unless they are kernels, multiplies by norms[p] and
  // quantizes, with an exponent for each lane and position: exponents[p * exponent_stride + i],
  // kAbsent if all are zero. Writes the words of patches k and k + 1 to out[p * position_stride + k
  // / 2 * pair_stride + i]. The buffer has kPatchBuffer numbers.
  void (*pack_patches)(const Patches& patches, const float* norms, float* buffer, int32_t* out,
                       int64_t position_stride, int64_t pair_stride, int32_t* exponents,
                       int64_t exponent_stride);
  void (*transform_back)(const WinogradSums& sums);

  // Runs a register-only loop of int16 dot products (or float32 multiply-adds) on this path.
  // Returns the number of multiply-adds.
  int64_t (*peak_dot)(int64_t iterations);
  int64_t (*peak_fma)(int64_t iterations);
};

// The path must be usable.
const ContractionKernels& contraction_kernels(Isa isa);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_KERNELS_TABLE_H_
