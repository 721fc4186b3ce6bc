#include "contraction/packing.h"

#include <algorithm>
#include <cstdlib>

namespace dfpjax {
namespace {

constexpr int64_t kPairs = kBlock / 2;
constexpr Bounds kNoBounds{};

// The common exponents of a packed row.
SegmentExponents exponents_of(const Piece* pieces, int count) {
  ExponentRange range;
  for (int i = 0; i < count; ++i) range.add(pieces[i].start / kSegment, pieces[i].exponent);
  return range.exponents();
}

// Returns whether any piece is shifted.
bool set_shifts(const SegmentExponents& common, Piece* pieces, int count) {
  bool any = false;
  for (int i = 0; i < count; ++i) {
    Piece& piece = pieces[i];
    const int32_t to = common.at[static_cast<size_t>(piece.start / kSegment)];
    piece.shift = static_cast<int16_t>(shift_to(to, piece.exponent));
    any |= piece.shift != 0;
  }
  return any;
}

// How a row (of operand 0, A) or a column (of operand 1, B) that is packed along k is rounded.
ShiftRounding rounding_along_k(const Exponents& exponents, size_t operand, int64_t lane) {
  if (!exponents.dithered()) return {nullptr, 0};
  return {kThresholds.of_k[operand].data(),
          kThresholds.of_lane[static_cast<size_t>(lane % kThresholdLanes)]};
}

}  // namespace

Bounds make_bounds(const std::vector<Window>& windows) {
  Bounds bounds{};
  for (const Window& w : windows) bounds.size[bounds.count++] = static_cast<int32_t>(w.size);
  return bounds;
}

const int32_t* word_quads(const int32_t* words, int stride, int count, int pairs, int32_t* out) {
  std::fill(out, out + kMostNarrow * kBlock / 2, 0);
  for (int k = 0; k < pairs; ++k)
    for (int column = 0; column < count; ++column)
      out[k / 4 * 4 * kMostNarrow + column * 4 + k % 4] = words[k * stride + column];
  return out;
}

PackingSpace::PackingSpace(int64_t max_rows, int64_t max_blocks) {
  const int64_t longest = std::max<int64_t>({max_rows, kBlock, kPanelsPerPack * kPanelColumns});
  points.reset(new Point[static_cast<size_t>(longest)]);
  runs.reset(new Run[static_cast<size_t>(std::max(longest, max_blocks * kBlock))]);
  run_counts.resize(static_cast<size_t>(max_blocks));
  zeros.resize(static_cast<size_t>(longest));
  edge.reset(new int16_t[static_cast<size_t>(2 * (longest + kSlack))]);
  rows.reset(new int16_t[kPanelColumns * kBlock + kSlack]);
}

void PackingSpace::look_up(const Exponents& of, int64_t origin, const Bounds& bounds,
                           const Point* at, int k, const Run* cut, int count) {
  const auto size = static_cast<size_t>(k) * static_cast<size_t>(count);
  if (exponents.size() < size) exponents.resize(size);
  if (shifts.size() < size) shifts.resize(size);
  of.lookup(origin, bounds, at, k, cut, count, exponents.data());
}

PairShifts PackingSpace::pair_shifts(const Exponents& of, size_t operand, int64_t lane) const {
  const bool dithered = of.dithered();
  return {shifts.data(), dithered ? kThresholds.of_lane.data() : nullptr, lane % kThresholdLanes,
          kThresholds.of_k[operand].data()};
}

void Preview::set(const int16_t* base, const Axis& points, int64_t p0, int64_t p1, const Axis& runs,
                  int64_t r0, int64_t r1) {
  base_ = base;
  offsets_.resize(static_cast<size_t>(p1 - p0));
  points.offsets(p0, p1, 0, offsets_.data());
  runs_.resize(static_cast<size_t>(runs.max_runs(r1 - r0)));
  run_count_ = runs.runs(r0, r1, runs_.data());
  next_ = 0;
  end_ = p1 - p0;
}

void Preview::set(const int32_t* words, int64_t count) {
  constexpr int kStretch = 256;  // elements
  base_ = reinterpret_cast<const int16_t*>(words);
  next_ = 0;
  end_ = ceil_div(2 * count, kStretch);
  offsets_.resize(static_cast<size_t>(end_));
  for (int64_t i = 0; i < end_; ++i) offsets_[static_cast<size_t>(i)] = i * kStretch;
  runs_.resize(1);
  runs_[0] = Run{};
  runs_[0].length = kStretch;
  run_count_ = 1;
}

void Preview::step() {
  constexpr int kLine = 64 / sizeof(int16_t);
  const int64_t end = std::min(next_ + per_step_, end_);
  for (; next_ < end; ++next_) {
    const int16_t* point = base_ + offsets_[static_cast<size_t>(next_)];
    for (int r = 0; r < run_count_; ++r) {
      const Run& run = runs_[static_cast<size_t>(r)];
      for (int32_t i = 0; i < run.length + kLine - 1; i += kLine)
        __builtin_prefetch(point + run.offset + i, 0, 2);
    }
  }
}

PackerA::PackerA(const Part& part, const int16_t* a, const int32_t* exponents,
                 const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(a + part.base_a),
      g_(part.g, &Dim::stride_a, &part.windows),
      m_(part.m, &Dim::stride_a, &part.windows),
      k_(part.k, &Dim::stride_a, &part.windows),
      origin_{},
      bounds_(make_bounds(part.windows)),
      exponents_(part.in_blocks ? std::make_unique<Exponents>(part.grid_a, exponents, part.base_a,
                                                              part.k, &Dim::stride_a, &part.windows)
                                : nullptr),
      wants_norms_(norms),
      source_(k_.run_extent() >= m_.run_extent() ? Source::kAlongK : Source::kAlongM) {
  int64_t reach = 1;
  for (const auto* dims : {&part.m, &part.k})
    for (const Dim& d : *dims) {
      const int64_t step =
          d.window < 0 ? d.stride_a : d.coef * part.windows[static_cast<size_t>(d.window)].stride_a;
      reach += (d.extent - 1) * std::abs(step);
    }
  overlapping_ = reach < part.M * part.K / 2;
  for (size_t w = 0; w < part.windows.size(); ++w) {
    const Window& window = part.windows[w];
    origin_.coord[w] = static_cast<int32_t>(window.offset);
    origin_.offset += window.offset * window.stride_a;
  }
  // Rows of contiguous words need no copy if they are a whole number of vectors.
  int64_t group_step;
  const bool words = reinterpret_cast<uintptr_t>(base_) % sizeof(int32_t) == 0 &&
                     m_.affine(&row_step_) && row_step_ % 2 == 0 && g_.affine(&group_step) &&
                     group_step % 2 == 0;
  if (words && part.windows.empty() && k_.run_extent() == part.K && part.K % 32 == 0)
    source_ = Source::kInPlace;
}

int64_t PackerA::pair_stride(int64_t rows) const {
  // An odd number of cache lines spreads the words of one row over all cache sets.
  const int64_t lines = ceil_div(rows, 16);
  return (lines | 1) * 16;
}

int64_t PackerA::block_words(int64_t rows) const {
  if (source_ == Source::kAlongM) return kPairs * pair_stride(rows);
  return kPairs * rows + kSlack / 2;
}

int64_t PackerA::block_size(int64_t block) const {
  return std::min<int64_t>(kBlock, k_.extent() - block * kBlock);
}

void PackerA::pack(int64_t g, int64_t m, int64_t rows, int64_t block, int64_t count,
                   PackingSpace* space, int32_t* out, const TilesOfA& to, int64_t stride) const {
  Point origin;
  g_.points(g, g + 1, origin_, &origin);
  if (source_ != Source::kAlongM)
    pack_along_k(origin, m, rows, block, count, space, out, to, stride);
  else
    pack_along_m(origin, m, rows, block, count, space, out, to, stride);
}

void PackerA::pack_along_m(const Point& origin, int64_t m, int64_t rows, int64_t block,
                           int64_t count, PackingSpace* space, int32_t* out, const TilesOfA& to,
                           int64_t stride) const {
  const int64_t width = pair_stride(rows), tiles = ceil_div(rows, kTileRows);
  const Run* runs = space->runs.get();
  int run_count = m_.runs(m, m + rows, space->runs.get());
  if (exponents_ != nullptr) {
    space->cut_runs.resize(static_cast<size_t>(rows));
    run_count = exponents_->cut_runs(origin.offset, runs, run_count, space->cut_runs.data());
    runs = space->cut_runs.data();
  }
  for (int64_t i = 0; i < count; ++i, out += kPairs * width) {
    const int64_t k0 = (block + i) * kBlock;
    const int k = static_cast<int>(block_size(block + i));
    const TilesOfA here = to.at(i * stride);
    const Point* points = space->points.get();
    k_.points(k0, k0 + k, origin, space->points.get());
    const int padding = static_cast<int>(width - rows);
    if (exponents_ == nullptr) {
      kernels_.pack_pairs(base_, bounds_, points, k, runs, run_count, space->zeros.data(),
                          space->edge.get(), out, width, padding);
    } else {
      space->look_up(*exponents_, origin.offset, bounds_, points, k, runs, run_count);
      std::vector<SegmentExponents> of_runs(static_cast<size_t>(run_count));
      for (int r = 0; r < run_count; ++r) {
        ExponentRange range;
        for (int j = 0; j < k; ++j)
          range.add(j / kSegment, space->exponents[static_cast<size_t>(j * run_count + r)]);
        of_runs[static_cast<size_t>(r)] = range.exponents();
      }
      for (int j = 0; j < k; ++j)
        for (int r = 0; r < run_count; ++r) {
          const auto at = static_cast<size_t>(j * run_count + r);
          const int32_t common =
              of_runs[static_cast<size_t>(r)].at[static_cast<size_t>(j / kSegment)];
          space->shifts[at] = static_cast<int8_t>(shift_to(common, space->exponents[at]));
        }
      for (int64_t t = 0; t < tiles; ++t) here.exponents[t].wide = false;
      for (int r = 0; r < run_count; ++r)
        for (int64_t row = runs[r].start; row < runs[r].start + runs[r].length; ++row) {
          TileExponents& tile = here.exponents[row / kTileRows];
          tile.rows[static_cast<size_t>(row % kTileRows)] = of_runs[static_cast<size_t>(r)];
          tile.wide |= of_runs[static_cast<size_t>(r)].wide;
        }
      kernels_.pack_shifted_pairs(base_, bounds_, points, k, runs, run_count,
                                  space->pair_shifts(*exponents_, 0, m), space->zeros.data(),
                                  space->edge.get(), out, width, padding);
    }
    if (wants_norms_)
      kernels_.norms_pairs(out, width, static_cast<int>(rows), ceil_div(k, 2), kTileRows,
                           here.norms);
    for (int64_t t = 0; t < tiles; ++t) here.packed[t] = {out + t * kTileRows, 1, width};
  }
}

void PackerA::preview(int64_t g, int64_t m, int64_t rows, int64_t block, int64_t count,
                      Preview* preview) const {
  if (overlapping_ && source_ != Source::kAlongM) return;
  const int16_t* base = base_ + origin_.offset + g_.offset(g);
  const int64_t k0 = block * kBlock, k1 = std::min((block + count) * kBlock, k_.extent());
  if (source_ == Source::kAlongM)
    preview->set(base, k_, k0, k1, m_, m, m + rows);
  else
    preview->set(base, m_, m, m + rows, k_, k0, k1);
}

void PackerA::pack_along_k(const Point& origin, int64_t m, int64_t rows, int64_t block,
                           int64_t count, PackingSpace* space, int32_t* out, const TilesOfA& to,
                           int64_t stride) const {
  const bool in_place = source_ == Source::kInPlace, aligned = exponents_ != nullptr;
  const int16_t* in = base_ + origin.offset + m * row_step_;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k0 = (block + i) * kBlock, k = block_size(block + i);
    space->run_counts[static_cast<size_t>(i)] =
        k_.runs(k0, k0 + k, &space->runs[static_cast<size_t>(i * kBlock)]);
  }
  if (!in_place || aligned) m_.points(m, m + rows, origin, space->points.get());
  // Tile by tile, so the tile is in the first-level cache when its norms are taken. The blocks of a
  // tile go together, since they are neighbours in memory.
  for (int64_t row = 0, t = 0; row < rows; row += kTileRows, ++t) {
    const int tile_rows = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
    const Point* points = space->points.get() + row;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = block_size(block + i), width = round_up(k, 32);
      const TilesOfA here = to.at(i * stride + t);
      int16_t* const copy = reinterpret_cast<int16_t*>(out + i * block_words(rows)) + row * width;
      const Run* runs = &space->runs[static_cast<size_t>(i * kBlock)];
      const int run_count = space->run_counts[static_cast<size_t>(i)];
      bool copied = !in_place;
      if (aligned)
        copied = pack_aligned_rows(m + row, tile_rows, points, runs, run_count,
                                   static_cast<int>(width), space, copy, width, here.exponents);
      else if (copied)
        kernels_.pack_rows(base_, bounds_, points, tile_rows, runs, run_count, copy, width);
      *here.packed = copied ? PackedA{reinterpret_cast<const int32_t*>(copy), width / 2, 1}
                            : PackedA{reinterpret_cast<const int32_t*>(in + row * row_step_ +
                                                                       (block + i) * kBlock),
                                      row_step_ / 2, 1};
      if (!wants_norms_) continue;
      kernels_.norms_rows(reinterpret_cast<const int16_t*>(here.packed->words),
                          here.packed->row_stride * 2, tile_rows, static_cast<int>(width),
                          here.norms);
    }
  }
}

bool PackerA::pack_aligned_rows(int64_t m, int rows, const Point* points, const Run* runs,
                                int run_count, int length, PackingSpace* space, int16_t* out,
                                int64_t stride, TileExponents* exponents) const {
  space->pieces.resize(kTileRows * kBlock);
  int counts[kTileRows];
  bool shifted = source_ != Source::kInPlace;
  exponents->wide = false;
  for (int r = 0; r < rows; ++r) {
    Piece* pieces = &space->pieces[static_cast<size_t>(r * kBlock)];
    counts[r] = exponents_->cut(base_, bounds_, points[r], runs, run_count, length, pieces);
    const SegmentExponents of_row = exponents_of(pieces, counts[r]);
    exponents->rows[static_cast<size_t>(r)] = of_row;
    exponents->wide |= of_row.wide;
    shifted |= set_shifts(of_row, pieces, counts[r]);
  }
  if (!shifted) return false;
  for (int r = 0; r < rows; ++r)
    kernels_.pack_pieces(&space->pieces[static_cast<size_t>(r * kBlock)], counts[r],
                         rounding_along_k(*exponents_, 0, m + r), out + r * stride);
  return true;
}

PackerB::PackerB(const Part& part, const int16_t* b, const int32_t* exponents,
                 const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(b + part.base_b),
      g_(part.g, &Dim::stride_b, nullptr),
      n_(part.n, &Dim::stride_b, nullptr),
      k_(part.k, &Dim::stride_b, nullptr),
      exponents_(part.in_blocks ? std::make_unique<Exponents>(part.grid_b, exponents, part.base_b,
                                                              part.k, &Dim::stride_b, nullptr)
                                : nullptr),
      wants_norms_(norms),
      along_k_(k_.run_extent() > n_.run_extent()) {}

int64_t PackerB::block_words(int64_t columns, int64_t k) {
  return round_up(ceil_div(k, 2), 16) * round_up(columns, kColumnQuantum);
}

void PackerB::preview(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                      Preview* preview) const {
  const int16_t* base = base_ + g_.offset(g);
  if (along_k_)
    preview->set(base, n_, n, n + columns, k_, k0, k0 + k);
  else
    preview->set(base, k_, k0, k0 + k, n_, n, n + columns);
}

void PackerB::pack_words(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                         PackingSpace* space, int32_t* out) const {
  k_.points(k0, k0 + k, Point{g_.offset(g), {}}, space->points.get());
  const int runs = n_.runs(n, n + columns, space->runs.get());
  const int64_t width = round_up(columns, kColumnQuantum);
  kernels_.pack_pairs(base_, kNoBounds, space->points.get(), static_cast<int>(k), space->runs.get(),
                      runs, space->zeros.data(), space->edge.get(), out, width,
                      static_cast<int>(width - columns));
}

// Packs one panel.
void PackerB::pack_along_k(int64_t origin, int64_t n, int64_t columns, int64_t k0, int64_t k,
                           PackingSpace* space, int32_t* out, PanelExponents* exponents) const {
  n_.points(n, n + columns, Point{origin, {}}, space->points.get());
  const int runs = k_.runs(k0, k0 + k, space->runs.get());
  const int64_t stride = round_up(k, 32), width = round_up(columns, kColumnQuantum);
  int16_t* rows = space->rows.get();
  if (exponents_ == nullptr) {
    kernels_.pack_rows(base_, kNoBounds, space->points.get(), static_cast<int>(columns),
                       space->runs.get(), runs, rows, stride);
  } else {
    space->pieces.resize(kPanelColumns * kBlock);
    int counts[kPanelColumns];
    ExponentRange range;
    exponents->not_finite = 0;
    for (int64_t j = 0; j < columns; ++j) {
      Piece* pieces = &space->pieces[static_cast<size_t>(j * kBlock)];
      counts[j] = exponents_->cut(base_, kNoBounds, space->points[static_cast<size_t>(j)],
                                  space->runs.get(), runs, static_cast<int>(stride), pieces);
      for (int i = 0; i < counts[j]; ++i)
        if (pieces[i].exponent >= kNotFiniteFrom) {
          exponents->not_finite |= uint64_t{1} << j;
          pieces[i].exponent = kAbsent;
        } else {
          range.add(pieces[i].start / kSegment, pieces[i].exponent);
        }
    }
    exponents->shared = range.exponents();
    for (int64_t j = 0; j < columns; ++j) {
      Piece* pieces = &space->pieces[static_cast<size_t>(j * kBlock)];
      set_shifts(exponents->shared, pieces, counts[j]);
      kernels_.pack_pieces(pieces, counts[j], rounding_along_k(*exponents_, 1, n + j),
                           rows + j * stride);
    }
  }
  std::fill(rows + columns * stride, rows + width * stride, int16_t{0});
  for (int64_t column = 0; column < width; column += kColumnQuantum)
    kernels_.transpose(rows + column * stride, stride, static_cast<int>(ceil_div(k, 2)),
                       out + column, width);
}

// The runs are those of `space`, whose points are those of k.
void PackerB::pack_runs(int64_t origin, int64_t k, int runs, int64_t width, int padding,
                        PackingSpace* space, int32_t* out, PanelExponents* exponents,
                        int64_t panel_stride, int64_t stride) const {
  const Point* points = space->points.get();
  const int count = static_cast<int>(k);
  if (exponents_ == nullptr) {
    kernels_.pack_pairs(base_, kNoBounds, points, count, space->runs.get(), runs,
                        space->zeros.data(), space->edge.get(), out, width, padding);
    return;
  }
  space->cut_runs.resize(kPanelsPerPack * kPanelColumns);
  const Run* cut = space->cut_runs.data();
  runs = exponents_->cut_runs(origin, space->runs.get(), runs, space->cut_runs.data());
  space->look_up(*exponents_, origin, kNoBounds, points, count, cut, runs);
  for (int first = 0; first < runs;) {  // panel by panel
    const int64_t panel = cut[first].start / panel_stride;
    int last = first;
    while (last < runs && cut[last].start / panel_stride == panel) ++last;
    PanelExponents& of_panel = exponents[panel * stride];
    of_panel.not_finite = 0;
    ExponentRange range;
    for (int j = 0; j < count; ++j)
      for (int r = first; r < last; ++r) {
        int32_t& exponent = space->exponents[static_cast<size_t>(j * runs + r)];
        if (exponent < kNotFiniteFrom) {
          range.add(j / kSegment, exponent);
          continue;
        }
        exponent = kAbsent;
        const int64_t start = cut[r].start - panel * panel_stride;
        for (int64_t column = start; column < start + cut[r].length; ++column)
          of_panel.not_finite |= uint64_t{1} << column;
      }
    of_panel.shared = range.exponents();
    for (int j = 0; j < count; ++j)
      for (int r = first; r < last; ++r) {
        const auto at = static_cast<size_t>(j * runs + r);
        const int32_t common = of_panel.shared.at[static_cast<size_t>(j / kSegment)];
        space->shifts[at] = static_cast<int8_t>(shift_to(common, space->exponents[at]));
      }
    first = last;
  }
  kernels_.pack_shifted_pairs(base_, kNoBounds, points, count, cut, runs,
                              space->pair_shifts(*exponents_, 1, 0), space->zeros.data(),
                              space->edge.get(), out, width, padding);
}

void PackerB::pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                   PackingSpace* space, int32_t* out, int64_t panel_stride, Norms* norms,
                   PanelExponents* exponents, int64_t stride) const {
  const int64_t origin = g_.offset(g);
  const int64_t panels = ceil_div(columns, kPanelColumns), whole = columns / kPanelColumns;
  const auto panel_columns = [&](int64_t p) {
    return std::min<int64_t>(kPanelColumns, columns - p * kPanelColumns);
  };
  const auto of_panel = [&](int64_t p) {
    return exponents == nullptr ? nullptr : exponents + p * stride;
  };
  if (along_k_) {
    for (int64_t p = 0; p < panels; ++p)
      pack_along_k(origin, n + p * kPanelColumns, panel_columns(p), k0, k, space,
                   out + p * panel_stride, of_panel(p));
  } else {
    // One pass over k for all whole panels: their runs start where their panels do.
    k_.points(k0, k0 + k, Point{origin, {}}, space->points.get());
    int runs = 0;
    for (int64_t p = 0; p < whole; ++p) {
      const int64_t first = n + p * kPanelColumns;
      const int count =
          n_.runs(first, first + kPanelColumns, &space->runs[static_cast<size_t>(runs)]);
      for (int i = 0; i < count; ++i)
        space->runs[static_cast<size_t>(runs++)].start += p * panel_stride;
    }
    if (whole > 0)
      pack_runs(origin, k, runs, kPanelColumns, 0, space, out, exponents, panel_stride, stride);
    if (whole < panels) {
      const int64_t first = n + whole * kPanelColumns, count = panel_columns(whole);
      const int64_t width = round_up(count, kColumnQuantum);
      runs = n_.runs(first, first + count, space->runs.get());
      pack_runs(origin, k, runs, width, static_cast<int>(width - count), space,
                out + whole * panel_stride, of_panel(whole), kPanelColumns, stride);
    }
  }
  if (!wants_norms_) return;
  for (int64_t p = 0; p < panels; ++p) {
    const int width = static_cast<int>(round_up(panel_columns(p), kColumnQuantum));
    kernels_.norms_pairs(out + p * panel_stride, width, width, static_cast<int>(ceil_div(k, 2)),
                         kPanelColumns, norms + p * stride);
  }
}

}  // namespace dfpjax
