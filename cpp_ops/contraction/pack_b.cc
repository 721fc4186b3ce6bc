// Packing of B.
#include <algorithm>

#include "contraction/packing.h"
#include "contraction/shifts.h"

namespace dfpjax {
namespace {

constexpr Bounds kNoBounds{};

// The panel, and a column in it, of column j of the panels that are packed together.
PanelSegments& panel_of(PanelsInBlocks* segments, int64_t j) {
  return segments->of[j / kBlocksPanelColumns];
}
void mark_lost(PanelsInBlocks* segments, int64_t j) {
  panel_of(segments, j).not_finite |= uint64_t{1} << j % kBlocksPanelColumns;
}

void clear(PanelsInBlocks* segments) {
  for (PanelSegments& panel : segments->of) {
    std::fill_n(panel.exponents, kSegments, kAbsent);
    panel.not_finite = 0;
  }
}

// As PackerA does for rows.
void mark_far(int64_t width, int64_t pairs, const int32_t* words, PanelsInBlocks* panels) {
  for (int64_t h = 0; h * kBlocksPanelColumns < width; ++h) {
    PanelSegments& panel = panels->of[h];
    const int64_t first = h * kBlocksPanelColumns;
    const int64_t end = std::min<int64_t>(first + kBlocksPanelColumns, width);
    int32_t found = 0;
    for (int64_t k = 0; k < pairs; ++k)
      if (panel.exponents[k / (kSegment / 2)] == kAbsent)
        for (int64_t column = first; column < end; ++column) found |= words[k * width + column];
    if (found != 0) panel.range = kFarRange;
  }
}

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
                                      &Dim::stride_b, nullptr, kernels)
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

// Packs the columns of panels in blocks as rows of k.
void PackerB::pack_aligned_rows(int64_t origin, int64_t n, int64_t columns, int runs,
                                PackingSpace* space, int16_t* rows, int64_t stride,
                                PanelsInBlocks* segments) const {
  const Point* const points = space->points.get();
  const int size = static_cast<int>(columns);
  exponents_->find(points, size, &space->points_space);
  const int count = space->look_up(*exponents_, origin, kNoBounds, size, columns, space->runs.get(),
                                   runs, kSegment, false, 0);
  const Run* const cut = space->cut_runs.data();
  clear(segments);
  for (int r = 0; r < count; ++r) {
    int32_t* const own = space->exponents.data() + r * columns;
    if (kernels_.largest_exponent(own, size) >= kNotFiniteFrom)
      take_finite(own, columns, [&](int64_t j) { mark_lost(segments, j); });
    for (int64_t j = 0; j < columns; j += kBlocksPanelColumns) {
      int32_t& common = panel_of(segments, j).exponents[segment_of(cut[r])];
      const auto part = static_cast<int>(std::min<int64_t>(kBlocksPanelColumns, columns - j));
      common = std::max(common, kernels_.largest_exponent(own + j, part));
    }
  }
  for (PanelSegments& panel : segments->of) kernels_.finish_panel(&panel);
  for (int r = 0; r < count; ++r)
    for (int64_t j = 0; j < columns; j += kBlocksPanelColumns) {
      const auto part = static_cast<int>(std::min<int64_t>(kBlocksPanelColumns, columns - j));
      kernels_.shifts_to(&panel_of(segments, j).exponents[segment_of(cut[r])], true,
                         space->exponents.data() + r * columns + j, part,
                         space->shifts.data() + r * columns + j);
    }
  kernels_.pack_shifted_rows(base_, kNoBounds, points, size, space->runs.get(), runs,
                             {cut, count, space->shifts.data(), columns},
                             dithering_of(*exponents_, 1, n), rows, stride);
}

// Packs one panel.
void PackerB::pack_along_k(int64_t origin, int64_t n, int64_t columns, int64_t k0, int64_t k,
                           PackingSpace* space, int32_t* out, PanelsInBlocks* segments) const {
  n_.points(n, n + columns, Point{origin, {}}, space->points.get());
  const int runs = k_.runs(k0, k0 + k, space->runs.get());
  const int64_t stride = round_up(k, 32), width = round_up(columns, kColumnQuantum);
  int16_t* rows = space->rows.get();
  if (exponents_ == nullptr) {
    kernels_.pack_rows(base_, kNoBounds, space->points.get(), static_cast<int>(columns),
                       space->runs.get(), runs, rows, stride);
  } else {
    pack_aligned_rows(origin, n, columns, runs, space, rows, stride, segments);
  }
  std::fill(rows + columns * stride, rows + width * stride, int16_t{0});
  for (int64_t column = 0; column < width; column += kColumnQuantum)
    kernels_.transpose(rows + column * stride, stride, static_cast<int>(ceil_div(k, 2)),
                       out + column, width);
}

// The runs are those of `space`, whose points are those of k.
void PackerB::pack_runs(int64_t origin, int64_t k, int runs, int64_t width, int padding,
                        PackingSpace* space, int32_t* out, PanelsInBlocks* segments,
                        int64_t panel_stride, int64_t stride) const {
  const Point* points = space->points.get();
  const int count = static_cast<int>(k);
  if (exponents_ == nullptr) {
    kernels_.pack_pairs(base_, kNoBounds, points, count, space->runs.get(), runs,
                        space->zeros.data(), space->edge.get(), out, width, padding);
    return;
  }
  exponents_->find(points, count, &space->points_space);
  const int cuts = space->look_up(*exponents_, origin, kNoBounds, count, kBlock, space->runs.get(),
                                  runs, kBlocksPanelColumns, false, 0);
  const Run* const cut = space->cut_runs.data();
  const int64_t panels = cut[cuts - 1].start / panel_stride + 1;
  for (int64_t p = 0; p < panels; ++p) clear(segments + p * stride);
  const auto common_of = [&](const Run& run, int s) -> int32_t& {
    return panel_of(segments + run.start / panel_stride * stride, run.start % panel_stride)
        .exponents[s];
  };
  for (int r = 0; r < cuts; ++r) {
    const Run& run = cut[r];
    int32_t* const own = space->exponents.data() + r * kBlock;
    if (kernels_.largest_exponent(own, count) >= kNotFiniteFrom)
      take_finite(own, count, [&](int64_t) {
        for (int64_t j = 0; j < run.length; ++j)
          mark_lost(segments + run.start / panel_stride * stride, run.start % panel_stride + j);
      });
    for (int s = 0; s * kSegment < count; ++s) {
      int32_t& common = common_of(run, s);
      const int size = std::min(kSegment, count - s * kSegment);
      common = std::max(common, kernels_.largest_exponent(own + s * kSegment, size));
    }
  }
  for (int64_t p = 0; p < panels; ++p)
    for (PanelSegments& panel : segments[p * stride].of) kernels_.finish_panel(&panel);
  for (int r = 0; r < cuts; ++r)
    for (int s = 0; s * kSegment < count; ++s) {
      const int64_t at = r * kBlock + s * kSegment;
      kernels_.shifts_to(&common_of(cut[r], s), true, space->exponents.data() + at,
                         std::min(kSegment, count - s * kSegment), space->shifts.data() + at);
    }
  kernels_.pack_shifted_pairs(base_, kNoBounds, points, count, space->runs.get(), runs,
                              {cut, cuts, space->shifts.data(), kBlock},
                              dithering_of(*exponents_, 1, 0), space->zeros.data(),
                              space->edge.get(), out, width, padding);
}

void PackerB::pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                   PackingSpace* space, int32_t* out, int64_t panel_stride, Norms* norms,
                   PanelsInBlocks* segments, int64_t stride) const {
  const int64_t origin = g_.offset(g);
  const int64_t panels = ceil_div(columns, kPanelColumns), whole = columns / kPanelColumns;
  const auto panel_columns = [&](int64_t p) {
    return std::min<int64_t>(kPanelColumns, columns - p * kPanelColumns);
  };
  const auto of_panel = [&](int64_t p) {
    return segments == nullptr ? nullptr : segments + p * stride;
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
      pack_runs(origin, k, runs, kPanelColumns, 0, space, out, segments, panel_stride, stride);
    if (whole < panels) {
      const int64_t first = n + whole * kPanelColumns, count = panel_columns(whole);
      const int64_t width = round_up(count, kColumnQuantum);
      runs = n_.runs(first, first + count, space->runs.get());
      pack_runs(origin, k, runs, width, static_cast<int>(width - count), space,
                out + whole * panel_stride, of_panel(whole), kPanelColumns, stride);
    }
  }
  const int pairs = static_cast<int>(ceil_div(k, 2));
  for (int64_t p = 0; segments != nullptr && p < panels; ++p)
    mark_far(round_up(panel_columns(p), kColumnQuantum), pairs, out + p * panel_stride,
             of_panel(p));
  if (!wants_norms_) return;
  for (int64_t p = 0; p < panels; ++p) {
    const int width = static_cast<int>(round_up(panel_columns(p), kColumnQuantum));
    const int32_t* words = out + p * panel_stride;
    if (segments != nullptr)
      kernels_.segment_norms_pairs(words, width, width, pairs, kBlocksPanelColumns,
                                   &of_panel(p)->of[0].norms, sizeof(PanelSegments));
    else
      kernels_.norms_pairs(words, width, width, pairs, kPanelColumns, norms + p * stride);
  }
}

}  // namespace dfpjax
