// Parts of the Winograd modes: F(2, 3), F(4, 3) or F(2, 5) along one or two axes.
//
// Operands are transformed patch by patch, and each position of the transformed tiles is a product
// of matrices by itself, with new mantissas and exponents: one exponent for each row of A, and for
// each column of B, in a block of k. dfpjax/numbers/contraction/winograd.py defines the same in
// plain JAX.
#ifndef DFPJAX_CONTRACTION_WINOGRAD_H_
#define DFPJAX_CONTRACTION_WINOGRAD_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "plan/index.h"
#include "plan/plan.h"
#include "runtime/scratch.h"

namespace dfpjax {

// What transformed products are multiplied by: 1 / (n_y n_x), where n is the product of a point's
// differences from the other ones. The quantization of B includes it.
const float* normalization(const WinogradTile& tile);
extern const float kOnes[kMostPositions];  // that of A

// Points, each with the same elements around it, some of which may not exist.
struct Patchwork {
  Axis points;
  Point origin{};
  Bounds bounds{};
  std::vector<Point> elements;
};

// A transformed axis.
struct WinogradAxis {
  Dim tiled, taps;
  int64_t tiles;
  int64_t origin;  // the coordinate of the first element
  bool reversed;   // the taps are read in reverse order
  int64_t tap(int64_t index) const { return reversed ? taps.extent - 1 - index : index; }
};

// The operands of a part as patches.
class WinogradPart {
 public:
  explicit WinogradPart(const Part& part);

  const Part& part() const { return p_; }
  bool along_m() const { return p_.mode == Mode::kWinogradAlongM; }
  const WinogradTile& tile() const { return tile_; }
  Dim channels() const;  // k's, or m's if the tiles lie along k
  // The patches of A, whose lanes are channels.
  Patchwork patches_of_a() const;
  // The tiles or taps of B. If the points are the columns, lanes are channels.
  Patchwork patches_of_b(bool points_are_columns) const;
  // The results of each row.
  Patchwork results() const;

 private:
  // The loops that have the tiles, each step a whole tile, in the direction in which A is read if
  // `directed`.
  std::vector<Dim> tiled_dims(bool directed) const;
  // Elements of so many along each axis: move(axis, index, element, number of the axis) adds what
  // an index along an axis does.
  template <class F>
  std::vector<Point> elements(int extent, F move) const;
  // The elements of tiles, and taps, where a tensor has these strides.
  Patchwork tiles(int64_t Dim::* stride) const;
  Patchwork taps(const Dim& points, int64_t Dim::* stride) const;

  const Part& p_;
  WinogradTile tile_;
  std::vector<WinogradAxis> axes_;
};

// One operand of a part: finds the elements of patches and their scales.
class PatchReader {
 public:
  PatchReader(const Grid& grid, const int16_t* data, const int32_t* exponents, int64_t base,
              Patchwork work, int64_t most_lanes);

  int elements() const { return static_cast<int>(work_.elements.size()); }
  int64_t points() const { return work_.points.extent(); }

  // The patches of some points, element by element.
  struct Found {
    std::vector<Point> points;
    std::vector<const int16_t*> from;  // the first lane of an element, or null
    std::vector<int64_t> exponents;    // the index of its exponent without the column's
    int64_t origin;                    // of the data
  };
  void find(int64_t origin, int64_t first, int64_t count, Found* found) const;

  // Lanes with common exponents.
  struct Piece {
    int64_t lane, end;
  };
  // The first piece of lanes [lane, end), whose length is at most `most`.
  Piece piece(int64_t origin, int64_t lane, int64_t end, int64_t most) const;

  // The largest exponent of a piece at patches [first, first + count), or kAbsent. Sets *lost if
  // one of the elements is not finite.
  int32_t unit(const Found& found, int64_t first, int64_t count, int64_t lane, bool* lost) const;
  // Sets the pointers to the lanes of these patches, and the scales that bring them to a unit.
  void scale(const Found& found, int64_t first, int64_t count, int64_t lane, int32_t unit,
             const int16_t** from, float* scales) const;

 private:
  // find() for a patch all of whose elements exist. Returns false if it may not.
  bool find_whole(const Point& point, const int16_t** from, int64_t* exponents) const;
  int64_t column_block(int64_t origin, int64_t lane) const;
  int32_t exponent(int64_t index) const;

  const Grid grid_;
  const int16_t* const data_;
  const int32_t* const exponents_;
  const int64_t base_;
  const Patchwork work_;
  const bool one_block_;  // in each group of the grid
  const int64_t rows_, block_rows_, block_columns_;
  int row_shift_ = 0, column_shift_ = 0;
  const std::vector<int16_t> zeros_;
  // Where elements lie relative to the first one: its rows of the grid, if they are whole rows.
  std::vector<int32_t> steps_;
  int32_t least_step_ = 0, most_step_ = 0;
  Point least_{}, most_{};  // the extreme coordinates of elements
};

// Room of one thread for transforms.
struct PatchSpace {
  PatchReader::Found found;
  std::vector<const int16_t*> from;
  std::vector<float> scales;
  Scratch values = Scratch::array<float>({kPatchBuffer});
};

// A transform, and what its results are multiplied by.
struct NormedTransform {
  WinogradTile tile;
  Transform transform;
  const float* norms;
};
// Transforms channels [lane, lane + count) of one of the patches that were found, and quantizes
// them with an exponent for each position. Writes the mantissas, up to a multiple of
// kColumnQuantum. Returns the unit; sets *lost if an element is not finite.
int32_t transform_along(const PatchReader& reader, int64_t patch, int64_t lane, int64_t count,
                        const NormedTransform& transform, const ContractionKernels& kernels,
                        PatchSpace* space, int16_t* out, int64_t position_stride,
                        int32_t* exponents, int64_t exponent_stride, bool* lost);

// The scales 2^(exponent - base), or 0 if this is more than kMostBelowBase below.
void scales_below(const int32_t* exponents, const int32_t* bases, int64_t count, float* scales);
// Adds the unit of mantissas to their exponents.
void add_unit(int32_t unit, int positions, int64_t count, int64_t stride, int32_t* exponents);
// Distances between positions, in words, that do not fall on the same lines of the first cache.
inline int64_t spread(int64_t words) { return words + 16; }

// Whether 2^(row + column) is normal for all columns.
bool all_normal(int32_t row, const int32_t* columns, int64_t count);

// What the jobs of both modes have in common.
class WinogradJob : public Job {
 protected:
  WinogradJob(const Part& part, const Operands& operands, const Chains& chains,
              const ContractionKernels& kernels, int threads);
  // Runs a cell with the chains that these norms certify. `k` is its number of products, which are
  // counted by length.
  void run_cell(CellArgs* cell, const Norms& row, const Norms& column, int64_t k,
                int64_t* lengths) const;
  void report_lengths(int64_t g, int64_t* lengths) const;
  // Multiplies totals by 2^(row + column).
  static void scale(int32_t row, const int32_t* columns, int64_t count, float* totals);
  // Makes totals of lost rows and columns NaN.
  static void lose(bool row, const char* columns, int64_t count, float* totals);

  const Part& p_;
  const WinogradPart winograd_;
  const Chains chains_;
  const ContractionKernels& kernels_;
  float* const c_;
  const WinogradTile tile_;
  const int64_t positions_;
  const Axis c_g_;
  const Patchwork results_;
  const int threads_;
};

std::unique_ptr<Job> make_winograd_along_m(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads, KernelReuse& reuse);
std::unique_ptr<Job> make_winograd_along_k(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_WINOGRAD_H_
