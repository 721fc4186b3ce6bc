// Packing of B.
#include <algorithm>

#include "contraction/packing.h"
#include "contraction/shifts.h"

namespace dfpjax {
namespace {

constexpr Bounds kNoBounds{};

}  // namespace

PackerB::PackerB(const Part& part, const int16_t* b, const int32_t* exponents,
                 const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(b + part.base_b),
      g_(part.g, &Dim::stride_b, nullptr),
      n_(part.n, &Dim::stride_b, nullptr),
      k_(part.k, &Dim::stride_b, nullptr),
      exponents_(part.in_blocks ? std::make_unique<Exponents>(
                                      part.grid_b, exponents, part.base_b,
                                      k_.run_extent() > n_.run_extent() ? part.n : part.k,
                                      &Dim::stride_b, nullptr)
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

// Packs the columns of a panel, in blocks, as rows of k.
void PackerB::align_panel_along_k(int64_t origin, int64_t n, int64_t columns, int runs,
                                  PackingSpace* space, int16_t* rows, int64_t stride,
                                  PanelExponents* exponents) const {
  ExponentRange range;
  exponents->not_finite = 0;
  const auto add = [&](int64_t column, int segment, int32_t* exponent) {
    if (*exponent < kNotFiniteFrom) return range.add(segment, *exponent);
    exponents->not_finite |= uint64_t{1} << column;
    *exponent = kAbsent;
  };
  const Point* const points = space->points.get();
  if (exponents_->whole_rows()) {
    if (space->cut_runs.size() < kBlock) space->cut_runs.resize(kBlock);
    const Run* const cut = space->cut_runs.data();
    const int count =
        exponents_->cut_runs(origin, space->runs.get(), runs, true, space->cut_runs.data());
    space->look_up(*exponents_, origin, kNoBounds, points, static_cast<int>(columns), cut, count);
    int32_t* own = space->exponents.data();
    for (int64_t j = 0; j < columns; ++j, own += count)
      for (int i = 0; i < count; ++i) add(j, segment_of(cut[i]), own + i);
    exponents->shared = range.exponents();
    own = space->exponents.data();
    int8_t* shift = space->shifts.data();
    for (int64_t j = 0; j < columns; ++j)
      for (int i = 0; i < count; ++i)
        *shift++ = static_cast<int8_t>(
            shift_to(exponents->shared.at[static_cast<size_t>(segment_of(cut[i]))], *own++));
    kernels_.pack_shifted_rows(base_, points, static_cast<int>(columns), cut, count,
                               space->shifts.data(), dithering_of(*exponents_, 1, n), rows, stride);
    return;
  }
  if (space->pieces.size() < kPanelColumns * kBlock) space->pieces.resize(kPanelColumns * kBlock);
  int counts[kPanelColumns];
  for (int64_t j = 0; j < columns; ++j) {
    Piece* pieces = &space->pieces[static_cast<size_t>(j * kBlock)];
    counts[j] = exponents_->cut(base_, kNoBounds, points[j], space->runs.get(), runs,
                                static_cast<int>(stride), pieces);
    for (int i = 0; i < counts[j]; ++i) add(j, pieces[i].start / kSegment, &pieces[i].exponent);
  }
  exponents->shared = range.exponents();
  for (int64_t j = 0; j < columns; ++j) {
    Piece* pieces = &space->pieces[static_cast<size_t>(j * kBlock)];
    set_shifts(exponents->shared, pieces, counts[j]);
    kernels_.pack_pieces(pieces, counts[j], dithering_of(*exponents_, 1, 0), n + j,
                         rows + j * stride);
  }
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
    align_panel_along_k(origin, n, columns, runs, space, rows, stride, exponents);
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
  constexpr size_t kRoom = kPanelsPerPack * kPanelColumns;
  if (space->cut_runs.size() < kRoom) space->cut_runs.resize(kRoom);
  const Run* const cut = space->cut_runs.data();
  runs = exponents_->cut_runs(origin, space->runs.get(), runs, false, space->cut_runs.data());
  space->look_up(*exponents_, origin, kNoBounds, points, count, cut, runs);
  int32_t* const all = space->exponents.data();
  for (int first = 0, last; first < runs; first = last) {  // panel by panel
    const int64_t panel = cut[first].start / panel_stride;
    last = first;
    while (last < runs && cut[last].start / panel_stride == panel) ++last;
    PanelExponents& of_panel = exponents[panel * stride];
    of_panel.not_finite = 0;
    ExponentRange range;
    bool finite = true;
    for_changes(all, count, runs, first, last, [&](int i, int r) {
      const int32_t exponent = all[i * runs + r];
      if (exponent < kNotFiniteFrom)
        range.add(i / kSegment, exponent);
      else
        finite = false;
    });
    for (int i = 0; !finite && i < count; ++i)
      for (int r = first; r < last; ++r) {
        int32_t& exponent = all[i * runs + r];
        if (exponent < kNotFiniteFrom) continue;
        exponent = kAbsent;
        const int64_t start = cut[r].start - panel * panel_stride;
        for (int64_t column = start; column < start + cut[r].length; ++column)
          of_panel.not_finite |= uint64_t{1} << column;
      }
    of_panel.shared = range.exponents();
    set_shifts(
        all, count, runs, first, last,
        [&](int) -> const SegmentExponents& { return of_panel.shared; }, space->shifts.data());
  }
  kernels_.pack_shifted_pairs(base_, points, count, cut, runs, space->shifts.data(),
                              dithering_of(*exponents_, 1, 0), space->zeros.data(), out, width,
                              padding);
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
