// Addresses of one operand: flattened indices as points (an offset each) and as runs (contiguous
// stretches), both with the window coordinates that decide whether an element exists.
#ifndef DFPJAX_PLAN_INDEX_H_
#define DFPJAX_PLAN_INDEX_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace dfpjax {

// One index of the operand. The offset of an element is the sum of the offsets of a point and a
// run; its coordinates are sums as well.
struct Point {
  int64_t offset;
  int32_t coord[kMaxWindows];
};

// Contiguous elements [start, start + length) of a flattened index, relative to the requested
// range. If `window` >= 0, the coordinate of that window grows by `coef` every `unit` elements, for
// the first time after `unit - phase` elements. The other coordinates are constant.
struct Run {
  int64_t start;  // 64 bits: PackerB lists runs of panels that are far apart
  int64_t offset;
  int32_t length;
  int32_t coord[kMaxWindows];
  int32_t window, coef;
  int64_t unit, phase;
  int64_t last;  // units from the first element to the last
};

// The sizes of the windows, which packing needs besides points and runs.
struct Bounds {
  int32_t count;
  int32_t size[kMaxWindows];
};

// Whether the element at the coordinates of two points, added, exists.
inline bool exists(const Bounds& bounds, const Point& point, const int32_t* coord) {
  bool inside = true;
  for (int w = 0; w < bounds.count; ++w)  // as unsigned, negative ones are too large
    inside &=
        static_cast<uint32_t>(point.coord[w] + coord[w]) < static_cast<uint32_t>(bounds.size[w]);
  return inside;
}

// A flattened, multi-dimensional index as one operand (or one exponent array) sees it.
class Axis {
 public:
  Axis() = default;
  // `stride` picks the operand. `windows` is null for operands without bounds checks.
  Axis(const std::vector<Dim>& dims, int64_t Dim::* stride, const std::vector<Window>* windows);

  int64_t extent() const { return extent_; }
  // The length of the innermost contiguous stretch.
  int64_t run_extent() const { return run_; }
  // True if every index i has the offset i * stride; gives this stride.
  bool affine(int64_t* stride) const;

  // Writes the points of [low, high), with `origin` added to each.
  void points(int64_t low, int64_t high, const Point& origin, Point* out) const;
  // An upper bound of the number of runs that cover `count` indices.
  int64_t max_runs(int64_t count) const { return std::min(count, count / run_ + 2); }
  // Writes the runs that cover [low, high) and returns their number.
  int runs(int64_t low, int64_t high, Run* out) const;
  // Writes the offsets alone.
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
