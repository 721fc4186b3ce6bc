#include "contraction/exponents.h"

#include <algorithm>

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
                     const std::vector<Window>* windows)
    : grid_(grid),
      data_(data),
      base_(base),
      rows_(grid.rows()),
      block_rows_(grid.block_row_count()),
      block_columns_(grid.block_column_count()),
      row_shift_(log2_of(grid.block_rows)),
      column_shift_(log2_of(grid.block_columns)),
      whole_rows_(true) {
  for (const Dim& d : points) {
    int64_t step = d.*stride;
    if (windows != nullptr && d.window >= 0)
      step = d.coef * (*windows)[static_cast<size_t>(d.window)].stride_a;
    whole_rows_ &= step % grid_.columns == 0;
  }
}

Exponents::Place Exponents::place(int64_t offset) const {
  Place at;
  at.outer = offset / grid_.outer;
  const int64_t inside = offset - at.outer * grid_.outer;
  at.row = inside / grid_.columns;
  at.column = inside - at.row * grid_.columns;
  return at;
}

int Exponents::cut(const int16_t* operand, const Bounds& bounds, const Point& point,
                   const Run* runs, int run_count, int length, Piece* out) const {
  Piece* const first = out;
  const auto zeros = [&out](int64_t low, int64_t high) {
    if (low < high)
      *out++ = {nullptr, kAbsent, static_cast<int16_t>(low), static_cast<int16_t>(high - low), 0};
  };
  int64_t end = 0;
  for (int i = 0; i < run_count; ++i) {
    const Run& run = runs[i];
    const Valid valid = valid_part(bounds, point, run);
    end = run.start + run.length;
    if (valid.low == valid.high) {
      zeros(run.start, end);
      continue;
    }
    zeros(run.start, run.start + valid.low);
    const int64_t offset = point.offset + run.offset + valid.low;
    const int16_t* from = operand + offset;
    Place at = place(base_ + offset);
    const int32_t* exponents = data_ + row_index(at);
    const int64_t last = run.start + valid.high;
    for (int64_t k = run.start + valid.low; k < last;) {
      const int64_t in_block = std::min(
          grid_.block_columns - (at.column & (grid_.block_columns - 1)), grid_.columns - at.column);
      const int64_t count = std::min({last - k, kSegment - k % kSegment, in_block});
      *out++ = {from, exponents[at.column >> column_shift_], static_cast<int16_t>(k),
                static_cast<int16_t>(count), 0};
      from += count;
      k += count;
      at.column += count;
      if (at.column < grid_.columns) continue;
      at.column = 0;
      if (++at.row == rows_) {
        at.row = 0;
        ++at.outer;
      }
      exponents = data_ + row_index(at);
    }
    zeros(last, end);
  }
  zeros(end, length);
  return static_cast<int>(out - first);
}

int Exponents::cut_runs(int64_t origin, const Run* runs, int count, bool segments, Run* out) const {
  Run* const first = out;
  for (int i = 0; i < count; ++i) {
    const Run& run = runs[i];
    int64_t column = 0;
    floor_row(base_ + origin + run.offset, &column);
    for (int64_t at = 0; at < run.length;) {
      int64_t length = std::min(grid_.block_columns - (column & (grid_.block_columns - 1)),
                                grid_.columns - column);
      length = whole_rows_ ? std::min(length, run.length - at) : 1;
      if (segments) length = std::min(length, kSegment - (run.start + at) % kSegment);
      if (run.window >= 0) length = std::min(length, run.unit - (run.phase + at) % run.unit);
      *out++ = part_of(run, at, length);
      at += length;
      column += length;
      if (column == grid_.columns) column = 0;
    }
  }
  return static_cast<int>(out - first);
}

// The row of an offset that may be negative, counted over all outer indices.
int64_t Exponents::floor_row(int64_t offset, int64_t* column) const {
  int64_t row = offset / grid_.columns;
  *column = offset - row * grid_.columns;
  if (*column < 0) {
    --row;
    *column += grid_.columns;
  }
  return row;
}

void Exponents::lookup(int64_t origin, const Bounds& bounds, const Point* points, int count,
                       const Run* runs, int run_count, int32_t* out) const {
  const Reach reach = reach_of(bounds, runs, run_count);
  if (!whole_rows_) {
    for (int k = 0; k < count; ++k)
      for (int r = 0; r < run_count; ++r) {
        const Valid valid = valid_part(bounds, points[k], runs[r]);
        const int64_t offset = base_ + points[k].offset + runs[r].offset + valid.low;
        const Place at = valid.low < valid.high ? place(offset) : Place{};
        *out++ =
            valid.low < valid.high ? data_[row_index(at) + (at.column >> column_shift_)] : kAbsent;
      }
    return;
  }
  // Relative to the origin's row, where each run begins.
  struct Start {
    int64_t row, column;
  };
  Start few[32];
  std::vector<Start> many(run_count > 32 ? static_cast<size_t>(run_count) : 0);
  Start* const starts = run_count > 32 ? many.data() : few;
  int64_t column = 0;
  const int64_t origin_row = floor_row(base_ + origin, &column);
  for (int r = 0; r < run_count; ++r) {
    Start& start = starts[r];
    start.row = floor_row(base_ + origin + runs[r].offset, &start.column) - origin_row;
    start.column >>= column_shift_;
  }
  Place at{0, 0, 0};
  const int32_t* exponents = nullptr;
  int64_t known = -1;  // the row, over all outer indices, that `at` is
  int64_t last_offset = 0, row = 0;
  for (int k = 0; k < count; ++k) {
    const Point& point = points[k];
    // Consecutive points are mostly consecutive rows.
    const int64_t step = point.offset - last_offset;
    if (k > 0 && step == grid_.columns)
      ++row;
    else if (k == 0 || step != 0)
      row = floor_row(base_ + point.offset, &column);
    last_offset = point.offset;
    const bool whole = inside(bounds, point, reach);
    for (int r = 0; r < run_count; ++r) {
      if (!whole) {
        const Valid valid = valid_part(bounds, point, runs[r]);
        if (valid.low == valid.high) {
          *out++ = kAbsent;
          continue;
        }
      }
      const Start& start = starts[r];
      const int64_t wanted = row + start.row;
      if (wanted != known) {
        at.row += wanted - known;
        if (known < 0 || at.row < 0 || at.row >= rows_) {
          at.outer = wanted / rows_;
          at.row = wanted - at.outer * rows_;
        }
        known = wanted;
        exponents = data_ + row_index(at);
      }
      *out++ = exponents[start.column];
    }
  }
}

}  // namespace dfpjax
