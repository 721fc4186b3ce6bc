#include "contraction/packing.h"

#include <algorithm>
#include <cstdlib>

namespace dfpjax {
namespace {

constexpr int64_t kPairs = kBlock / 2;
constexpr Bounds kNoBounds{};

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
  edge.reset(new int16_t[static_cast<size_t>(2 * longest + kSlack)]);
  rows.reset(new int16_t[kPanelColumns * kBlock + kSlack]);
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

PackerA::PackerA(const Part& part, const int16_t* a, const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(a + part.base_a),
      g_(part.g, &Dim::stride_a, &part.windows),
      m_(part.m, &Dim::stride_a, &part.windows),
      k_(part.k, &Dim::stride_a, &part.windows),
      origin_{},
      bounds_(make_bounds(part.windows)),
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
                   PackingSpace* space, int32_t* out, PackedA* packed, Norms* norms,
                   int64_t norms_stride) const {
  Point origin;
  g_.points(g, g + 1, origin_, &origin);
  if (source_ != Source::kAlongM) {
    pack_along_k(origin, m, rows, block, count, space, out, packed, norms, norms_stride);
    return;
  }
  const int runs = m_.runs(m, m + rows, space->runs.get());
  const int64_t stride = pair_stride(rows);
  for (int64_t i = 0; i < count; ++i, out += kPairs * stride, norms += norms_stride) {
    const int64_t k0 = (block + i) * kBlock, k = block_size(block + i);
    k_.points(k0, k0 + k, origin, space->points.get());
    kernels_.pack_pairs(base_, bounds_, space->points.get(), static_cast<int>(k), space->runs.get(),
                        runs, space->zeros.data(), space->edge.get(), out, stride,
                        static_cast<int>(stride - rows));
    if (wants_norms_)
      kernels_.norms_pairs(out, stride, static_cast<int>(rows), static_cast<int>(ceil_div(k, 2)),
                           kTileRows, norms);
    packed[i] = {out, 1, stride};
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
                           int64_t count, PackingSpace* space, int32_t* out, PackedA* packed,
                           Norms* norms, int64_t norms_stride) const {
  const bool in_place = source_ == Source::kInPlace;
  const int16_t* in = base_ + origin.offset + m * row_step_;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k0 = (block + i) * kBlock, k = block_size(block + i);
    if (in_place) {
      packed[i] = {reinterpret_cast<const int32_t*>(in + k0), row_step_ / 2, 1};
      continue;
    }
    space->run_counts[static_cast<size_t>(i)] =
        k_.runs(k0, k0 + k, &space->runs[static_cast<size_t>(i * kBlock)]);
    packed[i] = {out + i * block_words(rows), round_up(k, 32) / 2, 1};
  }
  if (!in_place) m_.points(m, m + rows, origin, space->points.get());
  // Tile by tile, so the tile is in the first-level cache when its norms are taken. The blocks of a
  // tile go together, since they are neighbours in memory.
  for (int64_t row = 0; row < rows; row += kTileRows, ++norms) {
    const int tile_rows = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t stride = packed[i].row_stride * 2;
      const auto* tile = reinterpret_cast<const int16_t*>(packed[i].words) + row * stride;
      if (!in_place)
        kernels_.pack_rows(base_, bounds_, space->points.get() + row, tile_rows,
                           &space->runs[static_cast<size_t>(i * kBlock)],
                           space->run_counts[static_cast<size_t>(i)], const_cast<int16_t*>(tile),
                           stride);
      if (!wants_norms_) continue;
      kernels_.norms_rows(tile, stride, tile_rows,
                          static_cast<int>(round_up(block_size(block + i), 32)),
                          &norms[i * norms_stride]);
    }
  }
}

PackerB::PackerB(const Part& part, const int16_t* b, const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(b + part.base_b),
      g_(part.g, &Dim::stride_b, nullptr),
      n_(part.n, &Dim::stride_b, nullptr),
      k_(part.k, &Dim::stride_b, nullptr),
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
                           PackingSpace* space, int32_t* out) const {
  n_.points(n, n + columns, Point{origin, {}}, space->points.get());
  const int runs = k_.runs(k0, k0 + k, space->runs.get());
  const int64_t stride = round_up(k, 32), width = round_up(columns, kColumnQuantum);
  int16_t* rows = space->rows.get();
  kernels_.pack_rows(base_, kNoBounds, space->points.get(), static_cast<int>(columns),
                     space->runs.get(), runs, rows, stride);
  std::fill(rows + columns * stride, rows + width * stride, int16_t{0});
  for (int64_t column = 0; column < width; column += kColumnQuantum)
    kernels_.transpose(rows + column * stride, stride, static_cast<int>(ceil_div(k, 2)),
                       out + column, width);
}

void PackerB::pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                   PackingSpace* space, int32_t* out, int64_t panel_stride, Norms* norms,
                   int64_t norms_stride) const {
  const int64_t origin = g_.offset(g);
  const int64_t panels = ceil_div(columns, kPanelColumns), whole = columns / kPanelColumns;
  const auto panel_columns = [&](int64_t p) {
    return std::min<int64_t>(kPanelColumns, columns - p * kPanelColumns);
  };
  if (along_k_) {
    for (int64_t p = 0; p < panels; ++p)
      pack_along_k(origin, n + p * kPanelColumns, panel_columns(p), k0, k, space,
                   out + p * panel_stride);
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
      kernels_.pack_pairs(base_, kNoBounds, space->points.get(), static_cast<int>(k),
                          space->runs.get(), runs, space->zeros.data(), space->edge.get(), out,
                          kPanelColumns, 0);
    if (whole < panels)
      pack_words(g, n + whole * kPanelColumns, panel_columns(whole), k0, k, space,
                 out + whole * panel_stride);
  }
  if (!wants_norms_) return;
  for (int64_t p = 0; p < panels; ++p) {
    const int width = static_cast<int>(round_up(panel_columns(p), kColumnQuantum));
    kernels_.norms_pairs(out + p * panel_stride, width, width, static_cast<int>(ceil_div(k, 2)),
                         kPanelColumns, norms + p * norms_stride);
  }
}

}  // namespace dfpjax
