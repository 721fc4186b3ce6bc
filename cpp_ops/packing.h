// Packing of whole blocks of A and B, with their norms.
#ifndef DFPJAX_PACKING_H_
#define DFPJAX_PACKING_H_

#include <cstdint>
#include <vector>

#include "index.h"
#include "isa.h"
#include "plan.h"

namespace dfpjax {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }

// Room for one packing call; each thread has its own.
class PackingSpace {
 public:
  explicit PackingSpace(int64_t max_rows);

 private:
  friend class PackerA;
  friend class PackerB;
  std::vector<Point> points;
  std::vector<Run> runs;
  std::vector<int16_t> zeros, edge, rows;
};

// Where the words of a packed block of A are: (row, k/2) at row * row_stride + (k/2) * pair_stride.
struct PackedLayout {
  int64_t row_stride, pair_stride;
};

// Packs blocks of up to kBlock consecutive k for ranges of rows.
class PackerA {
 public:
  PackerA(const Part& part, const int16_t* a, const KernelTable& kernels);

  // Words that a block of so many rows takes.
  int64_t block_words(int64_t rows) const;
  PackedLayout layout(int64_t rows, int64_t k) const;
  // Packs rows [m, m + rows) of A[g], k in [k0, k0 + k); norms has one element per row tile.
  void pack(int64_t g, int64_t m, int64_t rows, int64_t k0, int64_t k, PackingSpace* space,
            int32_t* out, Norms* norms) const;

 private:
  int64_t pair_stride(int64_t rows) const;

  const KernelTable& kernels_;
  const int16_t* base_;
  Axis g_, m_, k_;
  Point origin_;
  Bounds bounds_;
  bool row_major_;  // runs along k rather than along m
};

// Packs blocks of up to kBlock consecutive k for column panels.
class PackerB {
 public:
  PackerB(const Part& part, const int16_t* b, const KernelTable& kernels);

  // Words that a block of that size takes.
  static int64_t block_words(int64_t columns, int64_t k);
  // Packs columns [n, n + columns) of B[g], columns <= kPanelColumns, k in [k0, k0 + k).
  void pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k, PackingSpace* space,
            int32_t* out, Norms* norms) const;
  // The same without norms, for any number of columns that `space` has room for; B must not be
  // contiguous along k.
  void pack_words(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                  PackingSpace* space, int32_t* out) const;

 private:
  const KernelTable& kernels_;
  const int16_t* base_;
  Axis g_, n_, k_;
  bool row_major_;  // runs along k rather than along n
};

}  // namespace dfpjax

#endif  // DFPJAX_PACKING_H_
