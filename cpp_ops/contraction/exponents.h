// The exponents of an operand in blocks, as packing sees them.
#ifndef DFPJAX_CONTRACTION_EXPONENTS_H_
#define DFPJAX_CONTRACTION_EXPONENTS_H_

#include <cstdint>
#include <vector>

#include "contraction/alignment.h"
#include "contraction/kernels/table.h"
#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

class Exponents {
 public:
  // `base` is the offset of the addresses that the calls below are given; `points` are the
  // dimensions of the points that they are given.
  Exponents(const Grid& grid, const int32_t* data, int64_t base, const std::vector<Dim>& points,
            int64_t Dim::* stride, const std::vector<Window>* windows);

  bool dithered() const { return grid_.dithered; }
  // Whether points differ by whole rows of the operand, so runs can be cut for all of them.
  bool whole_rows() const { return whole_rows_; }

  // Cuts a packed row of k, of `length` elements, into pieces with one exponent each, inside of
  // segments. Writes at most length pieces and returns their number. `operand` is where the offsets
  // of points and runs begin.
  int cut(const int16_t* operand, const Bounds& bounds, const Point& point, const Run* runs,
          int run_count, int length, Piece* out) const;

  // Cuts runs so that, at any point, each has one exponent, and all of its elements exist or none.
  // Runs along k (`segments`) are cut at segments, too. Writes at most as many runs as there are
  // elements, and returns their number. `origin` is the point to which all others add.
  int cut_runs(int64_t origin, const Run* runs, int count, bool segments, Run* out) const;

  // The exponents that cut runs have at points, [points][runs]; kAbsent where a run has no
  // elements. `origin` is the one that was given to cut_runs.
  void lookup(int64_t origin, const Bounds& bounds, const Point* points, int count, const Run* runs,
              int run_count, int32_t* out) const;

 private:
  struct Place {
    int64_t outer, row, column;
  };
  Place place(int64_t offset) const;
  // The index of the exponents of a row of blocks.
  int64_t row_index(const Place& at) const {
    return (at.outer * block_rows_ + (at.row >> row_shift_)) * block_columns_;
  }
  int64_t floor_row(int64_t offset, int64_t* column) const;

  const Grid grid_;
  const int32_t* const data_;
  const int64_t base_, rows_, block_rows_, block_columns_;
  int row_shift_, column_shift_;
  bool whole_rows_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_EXPONENTS_H_
