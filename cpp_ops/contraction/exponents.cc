#include "contraction/exponents.h"

#include <algorithm>
#include <limits>

namespace dfpjax {
namespace {

#include "contraction/kernels/valid-inl.h"

int log2_of(int64_t power) {
  int result = 0;
  while (int64_t{1} << result < power) ++result;
  return result;
}

// The elements of a run from `skipped` on.
Run part_of(const Run& run, int64_t skipped, int64_t length) {
  Run part = run;
  part.start += skipped;
  part.offset += skipped;
  part.length = static_cast<int32_t>(length);
  if (run.window >= 0) {
    part.phase = (run.phase + skipped) % run.unit;
    part.coord[run.window] += static_cast<int32_t>((run.phase + skipped) / run.unit) * run.coef;
    part.last = (part.phase + length - 1) / run.unit;
  }
  return part;
}

}  // namespace

Exponents::Exponents(const Grid& grid, const int32_t* data, int64_t base,
                     const std::vector<Dim>& points, int64_t Dim::* stride,
                     const std::vector<Window>* windows, const ContractionKernels& kernels)
    : grid_(grid),
      data_(data),
      base_(base),
      rows_(grid.rows()),
      block_rows_(grid.block_row_count()),
      block_columns_(grid.block_column_count()),
      kernels_(kernels),
      row_shift_(log2_of(grid.block_rows)),
      column_shift_(log2_of(grid.block_columns)) {
  bool whole_rows = true;
  for (const Dim& d : points) {
    int64_t step = d.*stride;
    if (windows != nullptr && d.window >= 0)
      step = d.coef * (*windows)[static_cast<size_t>(d.window)].stride_a;
    whole_rows &= step % grid.columns == 0;
  }
  layout_ = whole_rows            ? Layout::kWholeRows
            : block_columns_ == 1 ? Layout::kAllColumns
                                  : Layout::kElements;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  const int64_t count = grid.outers * block_rows_ * block_columns_;
  small_ = rows_ < kMost && grid.columns < kMost && 0 < count && count < kMost;
  if (small_) last_ = static_cast<int32_t>(count - 1);
}

int Exponents::cut_runs(int64_t origin, const Run* runs, int count, int64_t piece, Cut how,
                        Run* out) const {
  const bool units = how != Cut::kRuns || layout_ != Layout::kAllColumns;
  Run* const first = out;
  for (int i = 0; i < count; ++i) {
    const Run& run = runs[i];
    int64_t column = place(base_ + origin + run.offset).column;
    for (int64_t at = 0; at < run.length;) {
      int64_t length = run.length - at;
      if (layout_ == Layout::kWholeRows)
        length = std::min({grid_.block_columns - (column & (grid_.block_columns - 1)),
                           grid_.columns - column, length});
      if (how == Cut::kElements || layout_ == Layout::kElements) length = 1;
      length = std::min(length, piece > 0 ? piece - (run.start + at) % piece : kLongestCut);
      if (run.window >= 0 && units)
        length = std::min(length, run.unit - (run.phase + at) % run.unit);
      *out++ = part_of(run, at, length);
      at += length;
      column += length;
      if (column == grid_.columns) column = 0;
    }
  }
  return static_cast<int>(out - first);
}

Exponents::Place Exponents::place(int64_t offset) const {
  Place at;
  at.row = offset / grid_.columns;
  at.column = offset - at.row * grid_.columns;
  if (at.column < 0) {
    --at.row;
    at.column += grid_.columns;
  }
  return at;
}

int32_t Exponents::exponent_at(int64_t offset) const {
  const Place at = place(offset);
  const int64_t outer = at.row / rows_, row = at.row - outer * rows_;
  const int32_t exponent = data_[(outer * block_rows_ + (row >> row_shift_)) * block_columns_ +
                                 (at.column >> column_shift_)];
  return exponent <= kOfZeros ? kAbsent : exponent;
}

void Exponents::find(const Point* points, int count, Space* space) const {
  if (!small_) return;
  if (layout_ == Layout::kWholeRows) find_stretches(points, count, space);
  if (layout_ == Layout::kAllColumns) find_rows(points, count, space);
}

void Exponents::find_stretches(const Point* points, int count, Space* space) const {
  space->stretches.clear();
  const int64_t outer_step = block_rows_ * block_columns_;
  for (int i = 0; i < count;) {
    const Place at = place(base_ + points[i].offset);
    const int64_t outer = at.row >= 0 ? at.row / rows_ : -((rows_ - 1 - at.row) / rows_);
    Stretch stretch{i, 1, 0, static_cast<int32_t>(outer * outer_step),
                    static_cast<int32_t>(at.row - outer * rows_)};
    if (i + 1 < count) {
      const int64_t step = points[i + 1].offset - points[i].offset;
      const int64_t rows = step / grid_.columns;
      if (step >= 0 && rows <= rows_) {
        stretch.step = static_cast<int32_t>(rows);
        int end = i + 2;
        while (end < count && points[end].offset - points[end - 1].offset == step) ++end;
        stretch.count = end - i;
      }
    }
    space->stretches.push_back(stretch);
    i += stretch.count;
  }
}

void Exponents::look_up_stretches(const std::vector<Stretch>& stretches, const Place& run,
                                  int64_t block_column, int32_t* out) const {
  const auto outer_step = static_cast<int32_t>(block_rows_ * block_columns_);
  const auto rows = static_cast<int32_t>(rows_);
  for (const Stretch& stretch : stretches) {
    int32_t row = stretch.row + static_cast<int32_t>(run.row);
    int32_t first = stretch.first + static_cast<int32_t>(block_column);
    int32_t* at = out + stretch.start;
    if (rows == 1) {  // blocks of one row, as in a matrix
      int32_t index = first + row * outer_step;
      for (int32_t i = 0; i < stretch.count; ++i, index += stretch.step * outer_step) {
        const int32_t found = data_[std::clamp(index, 0, last_)];
        at[i] = found <= kOfZeros ? kAbsent : found;
      }
      continue;
    }
    for (int32_t left = stretch.count; left > 0;) {
      if (row < 0) {
        row += rows;
        first -= outer_step;
      } else if (row >= rows) {
        row -= rows;
        first += outer_step;
      }
      // The points in this block.
      const int32_t block = row >> row_shift_;
      const int32_t end = std::min((block + 1) << row_shift_, rows) - row;
      int32_t some = left;
      if (stretch.step == 1)
        some = std::min(left, end);
      else if (stretch.step > 1)
        some = std::min(left, (end + stretch.step - 1) / stretch.step);
      // Elements of the padding have no exponent, and it does not matter what is read.
      const int32_t index = first + block * static_cast<int32_t>(block_columns_);
      const int32_t found = data_[std::clamp(index, 0, last_)];
      const int32_t exponent = found <= kOfZeros ? kAbsent : found;
      for (int32_t i = 0; i < some; i += kLookUpSlack) std::fill_n(at + i, kLookUpSlack, exponent);
      row += some * stretch.step;
      at += some;
      left -= some;
    }
  }
}

// Most points are at the same distance from each other.
void Exponents::find_rows(const Point* points, int count, Space* space) const {
  space->first.resize(static_cast<size_t>(count));
  space->row.resize(static_cast<size_t>(count));
  space->column.resize(static_cast<size_t>(count));
  const int64_t outer_step = block_rows_ * block_columns_;
  int64_t last = 0, known = std::numeric_limits<int64_t>::max(), outer = 0, row = 0;
  Place step{}, at{};
  for (int i = 0; i < count; ++i) {
    const int64_t moved = points[i].offset - last;
    if (i == 0 || moved != known) {
      const Place here = place(base_ + points[i].offset);
      const int64_t rows = here.row - at.row;
      step = place(moved);
      at = here;
      row += rows;
      known = i == 0 ? std::numeric_limits<int64_t>::max() : moved;
    } else {
      row += step.row;
      at.row += step.row;
      at.column += step.column;
      if (at.column >= grid_.columns) {
        at.column -= grid_.columns;
        ++row;
        ++at.row;
      }
    }
    last = points[i].offset;
    if (row >= rows_ || row < 0) {
      outer = at.row / rows_;
      row = at.row - outer * rows_;
      if (row < 0) {
        row += rows_;
        --outer;
      }
    }
    space->first[static_cast<size_t>(i)] = static_cast<int32_t>(outer * outer_step);
    space->row[static_cast<size_t>(i)] = static_cast<int32_t>(row);
    space->column[static_cast<size_t>(i)] = static_cast<int32_t>(at.column);
  }
}

// Whether all elements of a run lie in one row at all points at which they exist.
bool Exponents::in_one_row(const Run& run, int count, const Space& space) const {
  const int64_t shift = place(run.offset).column, last = grid_.columns - run.length;
  bool crosses = false;
  size_t border = 0;
  for (int i = 0; i < count; ++i) {
    if (border < space.borders.size() && space.borders[border] == i) {
      ++border;
      continue;
    }
    const int64_t column = space.column[static_cast<size_t>(i)] + shift;
    crosses |= (column >= grid_.columns ? column - grid_.columns : column) > last;
  }
  return !crosses;
}

bool Exponents::look_up(const Bounds& bounds, const Point* points, int count, const Run* runs,
                        int run_count, Cut how, bool each_alone, int64_t stride, Space* space,
                        int32_t* out) const {
  if (count == 0 || run_count == 0) return true;
  const Reach reach = reach_of(bounds, runs, run_count);
  space->borders.clear();
  for (int i = 0; bounds.count > 0 && i < count; ++i)
    if (!inside(bounds, points[i], reach)) space->borders.push_back(i);
  const bool single = how == Cut::kElements || layout_ == Layout::kElements;
  bool suits = true;
  const auto exact = [&](const Run& run, int i) {
    const Valid valid = valid_part(bounds, points[i], run);
    out[i] = kAbsent;
    if (valid.low == valid.high) return;
    const int64_t offset = base_ + points[i].offset + run.offset;
    out[i] = exponent_at(offset + valid.low);
    suits &= single || place(offset + valid.low).column + valid.high - valid.low <= grid_.columns;
    if (valid.high - valid.low < run.length) space->partial.push_back(i);
  };
  for (int r = 0; r < run_count && suits; ++r, out += stride) {
    const Run& run = runs[r];
    Place at = place(run.offset);
    space->partial.clear();
    // A run may be in the next example, but the loops do not look further.
    if (!small_ || single || at.row >= rows_ || at.row < -rows_) {
      for (int i = 0; i < count; ++i) exact(run, i);
    } else if (layout_ == Layout::kWholeRows) {
      // All points have the same column.
      at.column += place(base_ + points[0].offset).column;
      if (at.column >= grid_.columns) {
        at.column -= grid_.columns;
        ++at.row;
      }
      look_up_stretches(space->stretches, at, at.column >> column_shift_, out);
      // Runs are cut where coordinates change, so all elements exist or none.
      for (const int i : space->borders)
        if (!exists(bounds, points[i], run.coord)) out[i] = kAbsent;
    } else {
      const Places places{space->first.data(),
                          space->row.data(),
                          space->column.data(),
                          static_cast<int32_t>(grid_.columns),
                          static_cast<int32_t>(rows_),
                          row_shift_,
                          static_cast<int32_t>(block_columns_),
                          static_cast<int32_t>(block_rows_ * block_columns_),
                          last_};
      kernels_.look_up(data_, places,
                       {static_cast<int32_t>(at.row), static_cast<int32_t>(at.column), 0}, count,
                       out);
      for (const int i : space->borders) exact(run, i);
      suits &= in_one_row(run, count, *space);
    }
    // A segment has the same common exponent for all elements of the run if all points have it, and
    // one of them has all elements.
    int done = -1;
    for (const int i : space->partial) {
      if (!each_alone || i / kSegment == done) continue;
      done = i / kSegment;
      const int first = done * kSegment, end = std::min(first + kSegment, count);
      size_t partial = 0;
      for (const int j : space->partial) partial += j / kSegment == done ? 1 : 0;
      size_t present = 0;
      for (int j = first; j < end; ++j) {
        suits &= out[j] == kAbsent || out[j] == out[i];
        present += out[j] != kAbsent ? 1 : 0;
      }
      suits &= present > partial;
    }
  }
  return suits;
}

}  // namespace dfpjax
