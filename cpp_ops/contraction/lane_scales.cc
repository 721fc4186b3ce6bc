#include "contraction/lane_scales.h"

#include <algorithm>
#include <limits>

#include "contraction/packing.h"
#include "contraction/running.h"
#include "contraction/shifts.h"

namespace dfpjax {
namespace {

constexpr int64_t kTable = int64_t{1} << 14;  // scales; they stay in the second-level cache

// Sums of exponents below this have an operand that is absent.
constexpr int32_t kPresent = kAbsent / 2;

std::vector<Dim> all_dims(const Part& part) {
  std::vector<Dim> dims = part.g;
  dims.insert(dims.end(), part.m.begin(), part.m.end());
  dims.insert(dims.end(), part.k.begin(), part.k.end());
  return dims;
}

// Cuts the lanes of an operand where exponents may change.
class Cutter {
 public:
  Cutter(const Part& outer, const Grid& grid, int64_t base, int64_t lanes, int64_t Dim::* stride,
         const std::vector<Window>& windows)
      : grid_(grid), base_(base) {
    bool same_columns = true, one_row = base % lanes == 0 && grid.columns % lanes == 0;
    const auto step = [&](int64_t by) {
      same_columns &= by % grid.columns == 0;
      one_row &= by % lanes == 0;
    };
    for (const Dim& d : all_dims(outer)) step(d.*stride);
    for (const Window& window : windows) step(window.stride_a);
    if (same_columns)
      where_ = kColumns;
    else if (one_row && grid.block_column_count() == 1)
      where_ = kNowhere;
  }

  // The first lane after `lane` that may have another exponent.
  int64_t next(int64_t lane) const {
    if (where_ == kNowhere) return std::numeric_limits<int64_t>::max();
    if (where_ == kEverywhere) return lane + 1;
    const int64_t column = (base_ + lane) % grid_.columns;
    return lane +
           std::min(grid_.block_columns - column % grid_.block_columns, grid_.columns - column);
  }
  Exponents::Cut how() const {
    return where_ == kEverywhere ? Exponents::Cut::kElements : Exponents::Cut::kRuns;
  }

 private:
  const Grid grid_;
  const int64_t base_;
  // The lanes are in the same columns at all points; or in one row, and a block has all columns; or
  // nothing is known.
  enum { kColumns, kNowhere, kEverywhere } where_ = kEverywhere;
};

}  // namespace

LaneScales::LaneScales(const Part& part, const Part& outer, int64_t range, const Operands& operands,
                       const ContractionKernels& kernels, int64_t splits)
    : kernels_(kernels),
      range_(range),
      outer_g_(outer.G),
      m_(part.M),
      rows_are_points_(part.M >= part.K),
      bounds_(make_bounds(part.windows)),
      origin_(make_origin(part.windows)),
      a_g_(outer.g, &Dim::stride_a, &part.windows),
      a_m_(part.m, &Dim::stride_a, &part.windows),
      a_k_(part.k, &Dim::stride_a, &part.windows),
      b_g_(outer.g, &Dim::stride_b, nullptr),
      b_k_(part.k, &Dim::stride_b, nullptr),
      a_(part.grid_a, operands.ea, part.base_a, all_dims(outer), &Dim::stride_a, &part.windows,
         kernels),
      b_(part.grid_b, operands.eb, part.base_b, all_dims(outer), &Dim::stride_b, nullptr, kernels) {
  const int64_t lanes = part.g.back().extent;
  const Cutter of_a(outer, part.grid_a, part.base_a, lanes, &Dim::stride_a, part.windows);
  const Cutter of_b(outer, part.grid_b, part.base_b, lanes, &Dim::stride_b, {});
  cut_a_ = of_a.how();
  cut_b_ = of_b.how();
  for (int64_t lane = 0, end = 0; lane < lanes; lane = end) {
    if (lane % range == 0) firsts_.push_back(pieces_.size());
    end = std::min({of_a.next(lane), of_b.next(lane), lanes, (lane / range + 1) * range});
    pieces_.push_back({lane, end - lane});
  }
  firsts_.push_back(pieces_.size());
  bases_.assign(static_cast<size_t>(splits * outer_g_ * m_) * pieces_.size(), kUnset);
}

int64_t LaneScales::rows_at_once(const Block& block, int64_t most) const {
  const size_t pieces = end_piece(block.lane) - first_piece(block.lane);
  return std::clamp<int64_t>(kTable / (block.k * static_cast<int64_t>(pieces)), 1, most);
}

void LaneScales::set_runs(const Block& block, const Point& at, Space* space) const {
  space->runs.clear();
  for (size_t p = first_piece(block.lane); p < end_piece(block.lane); ++p) {
    Run run{};
    run.offset = at.offset + pieces_[p].lane;
    run.length = static_cast<int32_t>(pieces_[p].lanes);
    std::copy_n(at.coord, kMaxWindows, run.coord);
    run.window = -1;
    run.unit = 1;
    space->runs.push_back(run);
  }
}

void LaneScales::start(const Block& block, Space* space) const {
  const auto size = static_cast<size_t>(block.k);
  const int64_t stride = block.k + Exponents::kLookUpSlack;
  space->points.resize(size);
  b_k_.points(block.k0, block.k0 + block.k, Point{b_g_.offset(block.g), {}}, space->points.data());
  set_runs(block, Point{}, space);
  const size_t pieces = space->runs.size();
  space->of_b.resize(pieces * static_cast<size_t>(stride));
  space->lost_b.assign(pieces, false);
  b_.find(space->points.data(), block.k, &space->found);
  b_.look_up(Bounds{}, space->points.data(), block.k, space->runs.data(), static_cast<int>(pieces),
             cut_b_, false, stride, &space->found, space->of_b.data());
  for (size_t p = 0; p < pieces; ++p)
    take_finite(&space->of_b[p * static_cast<size_t>(stride)], block.k,
                [&](int64_t) { space->lost_b[p] = true; });
}

// Exponents of A at the elements of products, [piece][rest][point].
void LaneScales::look_up_a(const Block& block, int64_t m, int count, Space* space) const {
  Point origin;
  a_g_.points(block.g, block.g + 1, origin_, &origin);
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  std::vector<Point>& rows = rows_are_points_ ? space->points : space->runs_at;
  std::vector<Point>& along_k = rows_are_points_ ? space->runs_at : space->points;
  rows.resize(size(count));
  along_k.resize(size(block.k));
  a_m_.points(m, m + count, rows_are_points_ ? origin : Point{}, rows.data());
  a_k_.points(block.k0, block.k0 + block.k, rows_are_points_ ? Point{} : origin, along_k.data());

  const auto points = static_cast<int>(space->points.size());
  const size_t rest = space->runs_at.size();
  const size_t pieces = end_piece(block.lane) - first_piece(block.lane);
  space->stride = points + Exponents::kLookUpSlack;
  space->exponents.resize(pieces * rest * size(space->stride));
  a_.find(space->points.data(), points, &space->found);
  for (size_t i = 0; i < rest; ++i) {
    set_runs(block, space->runs_at[i], space);
    a_.look_up(bounds_, space->points.data(), points, space->runs.data(), static_cast<int>(pieces),
               cut_a_, false, static_cast<int64_t>(rest) * space->stride, &space->found,
               &space->exponents[i * size(space->stride)]);
  }
}

// Notes which rows have an element that is not finite.
void LaneScales::take_lost(const Block& block, Space* space) const {
  const size_t pieces = end_piece(block.lane) - first_piece(block.lane);
  const auto points = static_cast<int>(space->points.size());
  const size_t rest = space->runs_at.size(), rows = static_cast<size_t>(space->rows);
  space->lost.clear();
  for (size_t p = 0; p < pieces; ++p) space->lost.resize((p + 1) * rows, space->lost_b[p]);
  int32_t* own = space->exponents.data();
  for (size_t p = 0; p < pieces; ++p)
    for (size_t i = 0; i < rest; ++i, own += space->stride)
      if (kernels_.largest_exponent(own, points) >= kNotFiniteFrom)
        take_finite(own, points, [&](int64_t j) {
          space->lost[p * rows + (rows_are_points_ ? static_cast<size_t>(j) : i)] = true;
        });
}

void LaneScales::scale(const Block& block, int64_t m, int count, Space* space) {
  space->rows = count;
  look_up_a(block, m, count, space);
  take_lost(block, space);
  const size_t first = first_piece(block.lane), pieces = end_piece(block.lane) - first;
  const size_t rows = static_cast<size_t>(count), stride = static_cast<size_t>(space->stride);
  const size_t table = space->runs_at.size() * stride;  // of a piece
  const auto stride_b = static_cast<size_t>(block.k) + Exponents::kLookUpSlack;
  space->scales.resize(space->exponents.size());
  space->before.assign(pieces * rows, 1.0f);
  space->units.resize(rows);
  for (size_t p = 0; p < pieces; ++p) {
    int32_t* const exponents = &space->exponents[p * table];
    const int32_t* const of_b = &space->of_b[p * stride_b];
    space->tops.assign(rows, 2 * kAbsent);
    if (rows_are_points_) {
      for (int k = 0; k < block.k; ++k)
        kernels_.add_exponent(of_b[k], count, exponents + static_cast<size_t>(k) * stride,
                              space->tops.data());
    } else {
      for (size_t i = 0; i < rows; ++i) {
        kernels_.add_exponents(of_b, block.k, exponents + i * stride);
        space->tops[i] = kernels_.largest_exponent(exponents + i * stride, block.k);
      }
    }
    for (size_t i = 0; i < rows; ++i) {
      int32_t& base = bases_[index(block.split, block.g, m + static_cast<int64_t>(i), first + p)];
      const int32_t top = space->tops[i];
      if (top >= kPresent) {
        if (base != kUnset && top > base + kMostAbove)
          space->before[p * rows + i] = factor_of(base, top);
        if (base == kUnset || top > base + kMostAbove) base = top;
      }
      space->units[i] = base == kUnset ? 0 : base;
    }
    float* const scales = &space->scales[p * table];
    for (size_t i = 0; i < space->runs_at.size(); ++i)
      kernels_.scales_of(&space->units[rows_are_points_ ? 0 : i], !rows_are_points_,
                         exponents + i * stride, static_cast<int>(space->points.size()),
                         scales + i * stride);
  }
}

LaneScales::Row LaneScales::row(const Block& block, int i, size_t piece, const Space& space) const {
  const size_t p = piece - first_piece(block.lane), at = static_cast<size_t>(i);
  const size_t in_rows = p * static_cast<size_t>(space.rows) + at;
  const auto stride = static_cast<size_t>(space.stride);
  const size_t start = p * space.runs_at.size() * stride + at * (rows_are_points_ ? 1 : stride);
  return {&space.scales[start], rows_are_points_ ? space.stride : 1, space.before[in_rows],
          space.lost[in_rows]};
}

}  // namespace dfpjax
