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
  static constexpr int64_t kLongestCut = 4 * kThresholdLanes;

  // `base` is the offset of the addresses that the calls below are given; `points` are the
  // dimensions of the points that they are given.
  Exponents(const Grid& grid, const int32_t* data, int64_t base, const std::vector<Dim>& points,
            int64_t Dim::* stride, const std::vector<Window>* windows,
            const ContractionKernels& kernels);

  bool dithered() const { return grid_.dithered; }

  // How runs are cut: as little as the layout allows; where the coordinate of a window changes,
  // too; or into single elements.
  enum class Cut { kRuns, kUnits, kElements };
  // Cuts runs so that, at any point, each has one exponent, if look_up() agrees. If `piece` is not
  // 0, runs are cut at its multiples, too. Writes at most as many runs as there are elements, and
  // returns their number. `origin` is the point to which all others add.
  int cut_runs(int64_t origin, const Run* runs, int count, int64_t piece, Cut how, Run* out) const;

  // Points whose rows follow each other at a constant step.
  struct Stretch {
    int32_t start, count, step;
    int32_t first, row;  // of the first point: the first exponent of its group, and its row there
  };
  struct Space {
    std::vector<Stretch> stretches;
    std::vector<int32_t> first, row, column;
    std::vector<int> borders;  // points at which some elements do not exist
    std::vector<int> partial;  // of these, with some elements of the run
  };
  // Finds the rows of points, for any number of calls of look_up() with the same points.
  void find(const Point* points, int count, Space* space) const;
  // Writes the exponent of cut run r at point i to out[r * stride + i]; kAbsent if the run has no
  // elements there. May write up to kLookUpSlack numbers beyond the last. Returns false if runs
  // must be cut more: if the elements of one have several exponents or if, with `each_alone`, some
  // exist and others do not where it matters to the common exponent of a segment of points.
  bool look_up(const Bounds& bounds, const Point* points, int count, const Run* runs, int run_count,
               Cut how, bool each_alone, int64_t stride, Space* space, int32_t* out) const;
  static constexpr int64_t kLookUpSlack = 8;

 private:
  // How exponents are found. Where all points have the same column, runs are cut at blocks. Where
  // blocks have all columns, runs in one row are whole. Otherwise runs are cut into single
  // elements.
  enum class Layout { kWholeRows, kAllColumns, kElements };
  bool in_one_row(const Run& run, int count, const Space& space) const;
  struct Place {
    int64_t row, column;  // the row over all outer indices
  };
  Place place(int64_t offset) const;  // the offset may be negative
  int32_t exponent_at(int64_t offset) const;
  void find_rows(const Point* points, int count, Space* space) const;
  void find_stretches(const Point* points, int count, Space* space) const;
  void look_up_stretches(const std::vector<Stretch>& stretches, const Place& run,
                         int64_t block_column, int32_t* out) const;

  const Grid grid_;
  const int32_t* const data_;
  const int64_t base_, rows_, block_rows_, block_columns_;
  const ContractionKernels& kernels_;
  int row_shift_, column_shift_;
  Layout layout_;
  bool small_;        // all indices have 32 bits
  int32_t last_ = 0;  // the index of the last exponent
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_EXPONENTS_H_
