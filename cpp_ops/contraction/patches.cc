#include "contraction/patches.h"

#include <algorithm>
#include <cstring>

#include "contraction/alignment.h"

namespace dfpjax {
namespace {

constexpr int64_t kMostRows = 1 << 30;

int log2_of(int64_t power) {
  int result = 0;
  while (int64_t{1} << result < power) ++result;
  return result;
}

}  // namespace

PatchReader::PatchReader(const Grid& grid, const int16_t* data, const int32_t* exponents,
                         int64_t base, Patchwork work, int64_t most_lanes)
    : grid_(grid),
      data_(data),
      exponents_(exponents),
      base_(base),
      work_(std::move(work)),
      one_block_(grid.block_row_count() == 1 && grid.block_column_count() == 1),
      rows_(grid.rows()),
      block_rows_(grid.block_row_count()),
      block_columns_(grid.block_column_count()),
      row_shift_(log2_of(grid.block_rows)),
      column_shift_(log2_of(grid.block_columns)),
      zeros_(static_cast<size_t>(most_lanes)) {
  const std::vector<Point>& elements = work_.elements;
  least_ = most_ = elements.front();
  bool whole_rows = !one_block_ && rows_ < kMostRows;
  for (const Point& element : elements) {
    const int64_t offset = element.offset - elements.front().offset;
    whole_rows &= offset % grid_.columns == 0 && offset / grid_.columns < kMostRows &&
                  offset / grid_.columns > -kMostRows;
    for (int w = 0; w < kMaxWindows; ++w) {
      least_.coord[w] = std::min(least_.coord[w], element.coord[w]);
      most_.coord[w] = std::max(most_.coord[w], element.coord[w]);
    }
  }
  if (!whole_rows) return;
  for (const Point& element : elements)
    steps_.push_back(
        static_cast<int32_t>((element.offset - elements.front().offset) / grid_.columns));
  least_step_ = *std::min_element(steps_.begin(), steps_.end());
  most_step_ = *std::max_element(steps_.begin(), steps_.end());
}

bool PatchReader::find_whole(const Point& point, const int16_t** from, int64_t* exponents) const {
  if (steps_.empty() || !exists(work_.bounds, point, least_.coord) ||
      !exists(work_.bounds, point, most_.coord))
    return false;
  const int64_t first = point.offset + work_.elements.front().offset;
  const int64_t all = first / grid_.columns, outer = all / rows_;
  const auto row = static_cast<int32_t>(all - outer * rows_);
  if (row + least_step_ < 0 || row + most_step_ >= rows_) return false;
  for (size_t e = 0; e < steps_.size(); ++e) {
    from[e] = data_ + point.offset + work_.elements[e].offset;
    exponents[e] = (outer * block_rows_ + ((row + steps_[e]) >> row_shift_)) * block_columns_;
  }
  return true;
}

void PatchReader::find(int64_t origin, int64_t first, int64_t count, Found* found) const {
  const auto elements = static_cast<int64_t>(work_.elements.size());
  found->origin = origin;
  found->points.resize(static_cast<size_t>(count));
  found->from.resize(static_cast<size_t>(count * elements));
  found->exponents.resize(static_cast<size_t>(count * elements));
  Point start = work_.origin;
  start.offset += base_ + origin;
  work_.points.points(first, first + count, start, found->points.data());
  size_t at = 0;
  for (const Point& point : found->points) {
    if (find_whole(point, &found->from[at], &found->exponents[at])) {
      at += work_.elements.size();
      continue;
    }
    int64_t before = -1, row = 0, outer = 0;  // of the last element
    for (const Point& element : work_.elements) {
      const int64_t offset = point.offset + element.offset;
      found->from[at] = nullptr;
      if (exists(work_.bounds, point, element.coord)) {
        found->from[at] = data_ + offset;
        if (one_block_) {
          found->exponents[at] = offset / grid_.outer;
        } else {
          // Neighbours mostly lie in the same group of rows, one row apart.
          const int64_t step = offset - before;
          if (before >= 0 && step == grid_.columns && row + 1 < rows_) {
            ++row;
          } else {
            const int64_t all = offset / grid_.columns;
            outer = all / rows_;
            row = all - outer * rows_;
          }
          before = offset;
          found->exponents[at] = (outer * block_rows_ + (row >> row_shift_)) * block_columns_;
        }
      }
      ++at;
    }
  }
}

PatchReader::Piece PatchReader::piece(int64_t origin, int64_t lane, int64_t end,
                                      int64_t most) const {
  end = std::min(end, lane + most);
  if (one_block_) return {lane, end};
  const int64_t column = (base_ + origin + lane) % grid_.columns;
  return {lane, std::min(end, lane + grid_.block_columns - (column & (grid_.block_columns - 1)))};
}

int64_t PatchReader::column_block(int64_t origin, int64_t lane) const {
  return one_block_ ? 0 : (base_ + origin + lane) % grid_.columns >> column_shift_;
}

int32_t PatchReader::exponent(int64_t index) const {
  const int32_t exponent = exponents_[index];
  return exponent <= kOfZeros || exponent >= kNotFiniteFrom ? kAbsent : exponent;
}

int32_t PatchReader::unit(const Found& found, int64_t first, int64_t count, int64_t lane,
                          bool* lost) const {
  const auto elements = static_cast<int64_t>(work_.elements.size());
  const int32_t* const own = exponents_ + column_block(found.origin, lane);
  int32_t most = kAbsent;
  for (int64_t i = first * elements; i < (first + count) * elements; ++i) {
    const auto at = static_cast<size_t>(i);
    if (found.from[at] == nullptr) continue;
    const int32_t exponent = own[found.exponents[at]];
    if (exponent >= kNotFiniteFrom)
      *lost = true;
    else
      most = std::max(most, exponent);
  }
  return most <= kOfZeros ? kAbsent : most;
}

void PatchReader::scale(const Found& found, int64_t first, int64_t count, int64_t lane,
                        int32_t unit, const int16_t** from, float* scales) const {
  const auto elements = static_cast<int64_t>(work_.elements.size());
  const int64_t column = column_block(found.origin, lane);
  for (int64_t i = 0; i < count * elements; ++i) {
    const auto at = static_cast<size_t>(first * elements + i);
    if (found.from[at] == nullptr) {
      from[i] = zeros_.data();
      scales[i] = 0;
      continue;
    }
    from[i] = found.from[at] + lane;
    const int32_t own = exponent(found.exponents[at] + column), below = unit - own;
    const int32_t bits = own == kAbsent || below > kMostBelow ? 0 : (127 - below) << 23;
    std::memcpy(&scales[i], &bits, sizeof bits);
  }
}

}  // namespace dfpjax
