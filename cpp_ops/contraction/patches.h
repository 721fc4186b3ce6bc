// Operands as patches: where their elements lie, and the scales that bring them to one unit.
#ifndef DFPJAX_CONTRACTION_PATCHES_H_
#define DFPJAX_CONTRACTION_PATCHES_H_

#include <cstdint>
#include <vector>

#include "contraction/kernels/table.h"
#include "plan/index.h"
#include "plan/plan.h"
#include "runtime/scratch.h"

namespace dfpjax {

// Points, each with the same elements around it, some of which may not exist.
struct Patchwork {
  Axis points;
  Point origin{};
  Bounds bounds{};
  std::vector<Point> elements;
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

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_PATCHES_H_
