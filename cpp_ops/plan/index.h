// Addresses of one operand: flattened indices as points (an offset each) and as runs (contiguous
// stretches), both with the window coordinates that decide whether an element exists.
#ifndef DFPJAX_PLAN_INDEX_H_
#define DFPJAX_PLAN_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace dfpjax {

// One index of the operand: an element is at the sum of a point's and a run's offsets, with
// coordinates that are sums as well.
struct Point {
  int64_t offset;
  int32_t coord[kMaxWindows];
};

// Contiguous elements [start, start + length) of a flattened index, relative to the requested
// range. If `window` >= 0, that coordinate grows by `coef` every `unit` elements, the first time
// after `unit - phase` of them; the other coordinates are the same throughout.
struct Run {
  int64_t start;  // 64 bits, since PackerB puts the runs of panels that are far apart in one list
  int64_t offset;
  int32_t length;
  int32_t coord[kMaxWindows];
  int32_t window, coef;
  int64_t unit, phase;
  int64_t last;  // by how many units the last element is ahead of the first
};

// What packing needs to know of the windows, apart from points and runs.
struct Bounds {
  int32_t count;
  int32_t size[kMaxWindows];
};

// A flattened, multi-dimensional index as one operand (or one exponent array) sees it.
class Axis {
 public:
  Axis() = default;
  // `stride` picks the operand. `windows` is null for operands without bounds checks.
  Axis(const std::vector<Dim>& dims, int64_t Dim::* stride, const std::vector<Window>* windows);

  int64_t extent() const { return extent_; }
  // Elements of the innermost contiguous stretch.
  int64_t run_extent() const { return run_; }
  // True if every index has offset i * stride for the returned stride.
  bool affine(int64_t* stride) const;

  // Points [low, high); `origin` is added to each.
  void points(int64_t low, int64_t high, const Point& origin, Point* out) const;
  // An upper bound of the number of runs that cover `count` indices.
  int64_t max_runs(int64_t count) const { return std::min(count, count / run_ + 2); }
  // Runs that cover [low, high); returns how many.
  int runs(int64_t low, int64_t high, Run* out) const;
  // Offsets alone.
  void offsets(int64_t low, int64_t high, int64_t origin, int64_t* out) const;
  int64_t offset(int64_t i) const;

 private:
  struct Level {
    int64_t extent, stride;  // the stride includes the window's
    int window;              // 0 with a coef of 0 if there is none
    int32_t coef;
  };
  template <typename F>
  void walk(int64_t low, int64_t high, size_t levels, Point point, F visit) const;

  std::vector<Level> levels_;
  int64_t extent_ = 1;
  int64_t run_ = 1;
  size_t outer_ = 0;  // levels outside the run
  int run_window_ = -1;
  int64_t run_unit_ = 1;
  int32_t run_coef_ = 0;
};

}  // namespace dfpjax

#endif  // DFPJAX_PLAN_INDEX_H_
