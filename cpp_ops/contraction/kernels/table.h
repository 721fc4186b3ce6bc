// The kernels that contractions are made of, as a table of functions for each path.
#ifndef DFPJAX_CONTRACTION_KERNELS_TABLE_H_
#define DFPJAX_CONTRACTION_KERNELS_TABLE_H_

#include <cstdint>

#include "isa/isa.h"
#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

// Norms that certify chain lengths: the largest over the rows (or columns) of a tile and over its
// aligned chunks of 256, 128, ..., 4 elements of the sum of floor((x^2 + y^2) / 2^kNormShift) + 1
// over pairs of elements.
inline constexpr int kNormShift = 8;
inline constexpr int kNorms = 7;
struct Norms {
  int32_t chunk[kNorms];
};
inline constexpr int kChainLengths = kNorms + 1;  // chains of 2 need no norm

// One cell: C[rows, columns] += A[rows, k] B[k, columns] for one tile, panel and k-block.
// Mantissas come in 32-bit words of two consecutive k.
struct CellArgs {
  const int32_t* a;  // word (row, k/2) is at row * a_row + (k/2) * a_pair
  int64_t a_row, a_pair;
  const int32_t* b;  // word (k/2, column) is at (k/2) * columns + column
  int32_t columns;   // a multiple of kColumnQuantum
  int32_t rows;      // 1..kTileRows
  int32_t pairs;     // words along k
  int32_t chain;     // words per exact int32 sum
  // Null, or the same words for up to kMostNarrow columns: word (k/2, column) is at
  // (k/2) / 4 * 4 * kMostNarrow + column * 4 + (k/2) % 4, zero beyond columns and k.
  const int32_t* b_quads;
  int32_t narrow;          // columns that exist, if there is b_quads
  const float* const* in;  // running sums, one pointer per row; `out` or zeros
  float* const* out;
  bool finish;  // multiply by `scale` on the way out
  bool stream;  // `out` is 64-byte aligned and not needed soon: bypass the caches
  float scale;
  // Null if no sum can leave int32; else sums are saturated, and this counts how many were.
  int64_t* saturated;
};
inline constexpr int kColumnQuantum = 16;
inline constexpr int kMostNarrow = 4;  // columns of panels for which b_quads are provided

// Elements that packing may write beyond the end of packed rows and of `edge`.
inline constexpr int kSlack = 32;

struct ContractionKernels {
  void (*cell)(const CellArgs& args);

  // Packs rows of k: out[row * stride + j] for j in [0, stride), zero beyond the runs and where A
  // is padded. Points are rows, runs are along k.
  void (*pack_rows)(const int16_t* base, const Bounds& bounds, const Point* points, int rows,
                    const Run* runs, int run_count, int16_t* out, int64_t stride);
  // Packs words of two k: out[(k/2) * stride + start + i], i within a run, and `padding` zeros
  // after the last run. Points are k, runs are along the rows. `zeros` holds at least as many zeros
  // as a run has elements, `edge` room for twice as many.
  void (*pack_pairs)(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                     const Run* runs, int run_count, const int16_t* zeros, int16_t* edge,
                     int32_t* out, int64_t stride, int padding);
  // Words [16 rows][pairs] with a row stride in elements to [pairs][16 columns of stride words].
  void (*transpose)(const int16_t* rows, int64_t stride, int pairs, int32_t* out,
                    int64_t out_stride);

  // Norms of `rows` <= kTileRows rows; k is a multiple of 32.
  void (*norms_rows)(const int16_t* rows, int64_t stride, int count, int k, Norms* out);
  // Norms of words [pairs][stride]: out[row / group] for rows in [0, count); stride >= count
  // rounded up to 16, and the words between are zero.
  void (*norms_pairs)(const int32_t* words, int64_t stride, int count, int pairs, int group,
                      Norms* out);

  // sums[lane] (+)= products of aligned pairs of k, ascending. `a` has one pointer per k (never
  // null), `b` words [(k+1)/2][b_stride], none of which is kLowestPair.
  void (*lanes)(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k, int lanes,
                bool first, float* sums);
  // The same for any words.
  void (*lanes_of_any)(const int16_t* const* a, const int32_t* b, int64_t b_stride, int k,
                       int lanes, bool first, float* sums);
  // out[i] = scale * ((p0[i] + p1[i]) + ...), partial sums `stride` apart.
  void (*combine)(const float* partial, int64_t stride, int64_t parts, int64_t count, float scale,
                  float* out);

  // Run a register-only loop of the path's int16 dot product (or f32 multiply-add) and return how
  // many multiply-adds it did.
  int64_t (*peak_dot)(int64_t iterations);
  int64_t (*peak_fma)(int64_t iterations);
};

// The path must be usable.
const ContractionKernels& contraction_kernels(Isa isa);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_KERNELS_TABLE_H_
