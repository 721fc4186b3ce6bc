// Packing of whole blocks of A and B, with their norms.
#ifndef DFPJAX_CONTRACTION_PACKING_H_
#define DFPJAX_CONTRACTION_PACKING_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/blocking.h"
#include "contraction/exponents.h"
#include "contraction/kernels/table.h"
#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }

// Panels that are packed together, so wide rows of B are read in one go.
inline constexpr int64_t kPanelsPerPack = 4;

Bounds make_bounds(const std::vector<Window>& windows);
// The point of A from which the windows' dimensions count.
Point make_origin(const std::vector<Window>& windows);

// Copies words [pairs][stride] to `out` in the order of CellArgs::b_quads. Returns `out`.
const int32_t* word_quads(const int32_t* words, int stride, int count, int pairs, int32_t* out);

// Room for packing; each thread has its own.
class PackingSpace {
 public:
  // For blocks of up to max_rows rows of A and max_blocks blocks of k at a time.
  PackingSpace(int64_t max_rows, int64_t max_blocks);

 private:
  friend class PackerA;
  friend class PackerB;
  // Not initialized: most of it is never used.
  std::unique_ptr<Point[]> points;
  std::unique_ptr<Run[]> runs;
  std::unique_ptr<int16_t[]> edge, rows;
  std::vector<int> run_counts;
  std::vector<int16_t> zeros;
  // For operands in blocks.
  std::vector<Run> cut_runs;
  std::vector<int64_t> cut_firsts;  // of each k-block
  std::vector<int32_t> exponents;
  std::vector<int32_t> common;  // [segment][row]
  std::vector<int8_t> shifts;
  std::vector<bool> shifted;  // whether a k-block has shifts
  Exponents::Space points_space;

  // Makes room for the common exponents of so many rows, all absent, and returns their stride.
  int64_t make_common(int64_t rows);
  // Makes room for this many cut runs, and for exponents and shifts.
  void make_room(int64_t cuts, int64_t count);
  // Cuts runs, from cut run `first` on, and finds their exponents at `points`, which are those of
  // find(). Returns the number of cut runs.
  int look_up(const Exponents& of, int64_t origin, const Bounds& bounds, int count, int64_t stride,
              const Run* from, int from_count, int64_t piece, bool each_alone, int64_t first);
};

// The memory that a later packing call will read. It is fetched into the second-level cache bit by
// bit while the microkernel computes, which hides the latency of main memory.
class Preview {
 public:
  // Spreads the rest of the fetching evenly over the next `steps` steps.
  void spread(int64_t steps) { per_step_ = ceil_div(end_ - next_, std::max<int64_t>(steps, 1)); }
  void step();
  // Previews words that are packed already.
  void set(const int32_t* words, int64_t count);

 private:
  friend class PackerA;
  friend class PackerB;
  // Previews the elements at the sums of points [p0, p1) and run indices [r0, r1).
  void set(const int16_t* base, const Axis& points, int64_t p0, int64_t p1, const Axis& runs,
           int64_t r0, int64_t r1);

  const int16_t* base_ = nullptr;
  std::vector<int64_t> offsets_;
  std::vector<Run> runs_;
  int run_count_ = 0;
  int64_t next_ = 0, end_ = 0, per_step_ = 0;
};

// A packed k-block of a tile of A: word (row, k/2) is at words[row * row_stride + (k/2) *
// pair_stride].
struct PackedA {
  const int32_t* words;
  int64_t row_stride, pair_stride;
};

// What packing gives for each tile and k-block of A.
struct TilesOfA {
  PackedA* packed;
  Norms* norms;            // unless operands are in blocks
  TileSegments* segments;  // if they are

  TilesOfA at(int64_t i) const {
    return {packed + i, norms == nullptr ? nullptr : norms + i,
            segments == nullptr ? nullptr : segments + i};
  }
};

// The panels of B that are packed together, in blocks.
struct PanelsInBlocks {
  PanelSegments of[kHalves];
};

// What packing gives for a panel and k-block of B.
struct PanelOfB {
  const int32_t* words;
  const Norms* norms;              // unless operands are in blocks
  const PanelsInBlocks* segments;  // if they are
};

// Packs k-blocks for ranges of rows.
class PackerA {
 public:
  // pack() takes norms only if `norms` is true.
  PackerA(const Part& part, const int16_t* a, const int32_t* exponents,
          const ContractionKernels& kernels, bool norms);

  Source source() const { return source_; }
  // Whether rows overlap, mostly with their neighbours.
  bool overlapping() const { return overlapping_; }
  // Words that a packed block of `rows` rows takes.
  int64_t block_words(int64_t rows) const;
  // Packs rows [m, m + rows) of A[g], `count` blocks from `block` on. `out` is not used if the
  // operand is used in place. What row tile t and block i give goes to [i * stride + t] of each
  // array of `to`.
  void pack(int64_t g, int64_t m, int64_t rows, int64_t block, int64_t count, PackingSpace* space,
            int32_t* out, const TilesOfA& to, int64_t stride) const;
  // Previews a call of pack(). Does nothing if rows overlap and are packed along k, since the
  // caches then hold most of what it reads.
  void preview(int64_t g, int64_t m, int64_t rows, int64_t block, int64_t count,
               Preview* preview) const;

 private:
  int64_t pair_stride(int64_t rows) const;
  int64_t block_size(int64_t block) const;
  void pack_along_k(const Point& origin, int64_t m, int64_t rows, int64_t block, int64_t count,
                    PackingSpace* space, int32_t* out, const TilesOfA& to, int64_t stride) const;
  void pack_along_m(const Point& origin, int64_t m, int64_t rows, int64_t block, int64_t count,
                    PackingSpace* space, int32_t* out, const TilesOfA& to, int64_t stride) const;
  // Finds what rows [m, m + rows) need in k-block i, in blocks: fills the exponents of tiles, and
  // sets the shifts of the block's cut runs.
  void align_rows(int64_t rows, int64_t i, PackingSpace* space, TileSegments* tiles) const;
  // Does the same for runs along rows, with k points, which it cuts. Returns the number of cut
  // runs.
  int align_runs(const Point& origin, int64_t rows, int k, int run_count, PackingSpace* space,
                 TileSegments* tiles) const;
  // Marks a tile that has mantissas in a segment where their row has no exponent.
  static void mark_far(int64_t rows, int64_t pairs, const PackedA& packed, TileSegments* tile);
  // Sets the exponents of the tiles of `rows` rows, given [segment][row]. Reads kSegmentRows
  // numbers for each tile.
  void finish(const int32_t* common, int64_t stride, int segments, int64_t rows,
              TileSegments* tiles) const;

  const ContractionKernels& kernels_;
  const int16_t* base_;
  Axis g_, m_, k_;
  Point origin_;
  Bounds bounds_;
  std::unique_ptr<const Exponents> exponents_;  // null unless the operand is in blocks
  const bool wants_norms_;
  Source source_;
  int64_t row_step_ = 0;  // between rows that are used in place
  bool overlapping_;
};

// Packs blocks of up to kBlock consecutive k for column panels.
class PackerB {
 public:
  PackerB(const Part& part, const int16_t* b, const int32_t* exponents,
          const ContractionKernels& kernels, bool norms);

  // Words that a packed block of this size takes.
  static int64_t block_words(int64_t columns, int64_t k);
  // Packs columns [n, n + columns) of B[g], at most kPanelsPerPack panels, k in [k0, k0 + k).
  // Panels are panel_stride words apart; their norms, or segments for operands in blocks, are
  // `stride` apart.
  void pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k, PackingSpace* space,
            int32_t* out, int64_t panel_stride, Norms* norms, PanelsInBlocks* segments,
            int64_t stride) const;
  // Previews a call of pack().
  void preview(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
               Preview* preview) const;
  // Packs without norms, as one panel of up to kPanelsPerPack * kPanelColumns columns. B must not
  // be contiguous along k, nor in blocks.
  void pack_words(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k, PackingSpace* space,
                  int32_t* out) const;

 private:
  void pack_along_k(int64_t origin, int64_t n, int64_t columns, int64_t k0, int64_t k,
                    PackingSpace* space, int32_t* out, PanelsInBlocks* segments) const;
  void pack_aligned_rows(int64_t origin, int64_t n, int64_t columns, int runs, PackingSpace* space,
                         int16_t* rows, int64_t stride, PanelsInBlocks* segments) const;
  // Packs the columns of runs along n, which are `width` words apart for each two k.
  void pack_runs(int64_t origin, int64_t k, int runs, int64_t width, int padding,
                 PackingSpace* space, int32_t* out, PanelsInBlocks* segments, int64_t panel_stride,
                 int64_t stride) const;

  const ContractionKernels& kernels_;
  const int16_t* base_;
  Axis g_, n_, k_;
  std::unique_ptr<const Exponents> exponents_;  // null unless the operand is in blocks
  const bool wants_norms_;
  bool along_k_;  // runs along k rather than along n
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_PACKING_H_
