#include "plan/index.h"

#include <algorithm>
#include <cstring>

namespace dfpjax {

Axis::Axis(const std::vector<Dim>& dims, int64_t Dim::* stride,
           const std::vector<Window>* windows) {
  for (const Dim& d : dims) {
    Level level{d.extent, d.*stride, 0, 0};
    if (windows != nullptr && d.window >= 0) {
      level.window = d.window;
      level.coef = static_cast<int32_t>(d.coef);
      level.stride = d.coef * (*windows)[static_cast<size_t>(d.window)].stride_a;
    }
    extent_ *= d.extent;
    levels_.push_back(level);
  }
  // The run grows from the innermost level outwards, as long as the next level continues it. A
  // level that moves a window is the last one, so the elements that exist are one stretch of the
  // run.
  outer_ = levels_.size();
  while (outer_ > 0 && run_window_ < 0) {
    const Level& level = levels_[outer_ - 1];
    if (level.stride != run_ || level.coef < 0) break;
    if (level.coef > 0) {
      run_window_ = level.window;
      run_unit_ = run_;
      run_coef_ = level.coef;
    }
    run_ *= level.extent;
    --outer_;
  }
}

bool Axis::affine(int64_t* stride) const {
  *stride = levels_.empty() ? 0 : levels_.back().stride;
  int64_t step = *stride;
  for (size_t i = levels_.size(); i-- > 0;) {
    if (levels_[i].coef != 0 || levels_[i].stride != step) return false;
    step *= levels_[i].extent;
  }
  return true;
}

// Visits indices [low, high) of the outermost `levels` levels in order, in stretches. visit(point,
// steps, level) stands for `steps` indices: the first is at `point`, and each of the others is one
// step of `level` further.
template <typename F>
void Axis::walk(int64_t low, int64_t high, size_t levels, Point point, F visit) const {
  const auto move = [&point](const Level& level, int64_t by) {
    point.offset += by * level.stride;
    point.coord[level.window] += static_cast<int32_t>(by * level.coef);
  };
  if (levels == 0) {
    if (low < high) visit(point, int64_t{1}, Level{1, 0, 0, 0});
    return;
  }
  int64_t index[kMaxDims];
  int64_t rest = low;
  for (size_t i = levels; i-- > 0;) {
    index[i] = rest % levels_[i].extent;
    rest /= levels_[i].extent;
    move(levels_[i], index[i]);
  }
  const Level& inner = levels_[levels - 1];
  int64_t start = index[levels - 1];
  for (int64_t position = low; position < high;) {
    const int64_t steps = std::min(inner.extent - start, high - position);
    visit(point, steps, inner);
    position += steps;
    move(inner, -start);
    start = 0;
    for (size_t i = levels - 1; i-- > 0;) {
      move(levels_[i], 1);
      if (++index[i] < levels_[i].extent) break;
      move(levels_[i], -levels_[i].extent);
      index[i] = 0;
    }
  }
}

void Axis::points(int64_t low, int64_t high, const Point& origin, Point* out) const {
  walk(low, high, levels_.size(), origin, [&](const Point& p, int64_t steps, Level level) {
    int64_t offset = p.offset;
    int32_t coord = p.coord[level.window];
    for (int64_t i = 0; i < steps; ++i, ++out) {
      out->offset = offset;
      std::memcpy(out->coord, p.coord, sizeof p.coord);
      out->coord[level.window] = coord;
      offset += level.stride;
      coord += level.coef;
    }
  });
}

void Axis::offsets(int64_t low, int64_t high, int64_t origin, int64_t* out) const {
  walk(low, high, levels_.size(), Point{origin, {}},
       [&](const Point& p, int64_t steps, Level level) {
         for (int64_t i = 0; i < steps; ++i) *out++ = p.offset + i * level.stride;
       });
}

int64_t Axis::offset(int64_t i) const {
  int64_t result;
  offsets(i, i + 1, 0, &result);
  return result;
}

int Axis::runs(int64_t low, int64_t high, Run* out) const {
  if (low >= high) return 0;
  Run* const first = out;
  int64_t start = low / run_ * run_;
  walk(low / run_, (high - 1) / run_ + 1, outer_, Point{},
       [&](const Point& p, int64_t steps, Level level) {
         for (int64_t i = 0; i < steps; ++i, start += run_) {
           const int64_t begin = std::max(start, low), end = std::min(start + run_, high);
           const int64_t skipped = begin - start;
           Run run{};
           run.start = begin - low;
           run.length = static_cast<int32_t>(end - begin);
           run.offset = p.offset + i * level.stride + skipped;
           std::copy(p.coord, p.coord + kMaxWindows, run.coord);
           run.coord[level.window] += static_cast<int32_t>(i) * level.coef;
           run.window = run_window_;
           if (run_window_ >= 0) {
             run.unit = run_unit_;
             run.phase = skipped % run_unit_;
             run.last = (run.phase + run.length - 1) / run_unit_;
             run.coef = run_coef_;
             run.coord[run_window_] += static_cast<int32_t>(skipped / run_unit_) * run_coef_;
           }
           *out++ = run;
         }
       });
  return static_cast<int>(out - first);
}

}  // namespace dfpjax
