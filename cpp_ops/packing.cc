#include "packing.h"

#include <algorithm>

namespace dfpjax {
namespace {

constexpr int64_t kPairs = kBlock / 2;
constexpr Bounds kNoBounds{};

Bounds make_bounds(const std::vector<Window>& windows) {
  Bounds bounds{};
  for (const Window& w : windows) bounds.size[bounds.count++] = static_cast<int32_t>(w.size);
  return bounds;
}

}  // namespace

PackingSpace::PackingSpace(int64_t max_rows) {
  const auto longest = static_cast<size_t>(
      std::max<int64_t>({max_rows, kBlock, kPanelColumns}));
  points.resize(longest);
  runs.resize(longest);
  zeros.resize(longest);
  edge.resize(2 * longest);
  rows.resize(kPanelColumns * kBlock);
}

PackerA::PackerA(const Part& part, const int16_t* a, const KernelTable& kernels)
    : kernels_(kernels),
      base_(a + part.base_a),
      g_(part.g, &Dim::stride_a, &part.windows),
      m_(part.m, &Dim::stride_a, &part.windows),
      k_(part.k, &Dim::stride_a, &part.windows),
      origin_{},
      bounds_(make_bounds(part.windows)),
      row_major_(k_.run_extent() >= m_.run_extent()) {
  for (size_t w = 0; w < part.windows.size(); ++w) {
    const Window& window = part.windows[w];
    origin_.coord[w] = static_cast<int32_t>(window.offset);
    origin_.offset += window.offset * window.stride_a;
  }
}

int64_t PackerA::pair_stride(int64_t rows) const {
  // An odd number of cache lines, so that the words of one row are spread over all cache sets.
  const int64_t lines = ceil_div(rows, 16);
  return (lines | 1) * 16;
}

int64_t PackerA::block_words(int64_t rows) const {
  return kPairs * (row_major_ ? rows : pair_stride(rows));
}

PackedLayout PackerA::layout(int64_t rows, int64_t k) const {
  if (row_major_) return {round_up(k, 32) / 2, 1};
  return {1, pair_stride(rows)};
}

void PackerA::pack(int64_t g, int64_t m, int64_t rows, int64_t k0, int64_t k, PackingSpace* space,
                   int32_t* out, Norms* norms) const {
  Point origin;
  g_.points(g, g + 1, origin_, &origin);
  if (!row_major_) {
    k_.points(k0, k0 + k, origin, space->points.data());
    const int runs = m_.runs(m, m + rows, space->runs.data());
    const int64_t stride = pair_stride(rows);
    kernels_.pack_pairs(base_, bounds_, space->points.data(), static_cast<int>(k),
                        space->runs.data(), runs, space->zeros.data(), space->edge.data(), out,
                        stride);
    kernels_.norms_pairs(out, stride, static_cast<int>(rows), static_cast<int>(ceil_div(k, 2)),
                         kTileRows, norms);
    return;
  }
  m_.points(m, m + rows, origin, space->points.data());
  const int runs = k_.runs(k0, k0 + k, space->runs.data());
  const int64_t stride = round_up(k, 32);
  auto* to = reinterpret_cast<int16_t*>(out);
  // Tile by tile, so that the norms find the tile in the first-level cache.
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - row));
    kernels_.pack_rows(base_, bounds_, space->points.data() + row, count, space->runs.data(), runs,
                       to + row * stride, stride);
    kernels_.norms_rows(to + row * stride, stride, count, static_cast<int>(stride), norms++);
  }
}

PackerB::PackerB(const Part& part, const int16_t* b, const KernelTable& kernels)
    : kernels_(kernels),
      base_(b + part.base_b),
      g_(part.g, &Dim::stride_b, nullptr),
      n_(part.n, &Dim::stride_b, nullptr),
      k_(part.k, &Dim::stride_b, nullptr),
      row_major_(k_.run_extent() > n_.run_extent()) {}

int64_t PackerB::block_words(int64_t columns, int64_t k) {
  return round_up(ceil_div(k, 2), 16) * round_up(columns, kColumnQuantum);
}

void PackerB::pack_words(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                         PackingSpace* space, int32_t* out) const {
  k_.points(k0, k0 + k, Point{g_.offset(g), {}}, space->points.data());
  const int runs = n_.runs(n, n + columns, space->runs.data());
  kernels_.pack_pairs(base_, kNoBounds, space->points.data(), static_cast<int>(k),
                      space->runs.data(), runs, space->zeros.data(), space->edge.data(), out,
                      round_up(columns, kColumnQuantum));
}

void PackerB::pack(int64_t g, int64_t n, int64_t columns, int64_t k0, int64_t k,
                   PackingSpace* space, int32_t* out, Norms* norms) const {
  const int64_t width = round_up(columns, kColumnQuantum);
  const int pairs = static_cast<int>(ceil_div(k, 2));
  if (row_major_) {
    n_.points(n, n + columns, Point{g_.offset(g), {}}, space->points.data());
    const int runs = k_.runs(k0, k0 + k, space->runs.data());
    const int64_t stride = round_up(k, 32);
    int16_t* rows = space->rows.data();
    kernels_.pack_rows(base_, kNoBounds, space->points.data(), static_cast<int>(columns),
                       space->runs.data(), runs, rows, stride);
    std::fill(rows + columns * stride, rows + width * stride, int16_t{0});
    for (int64_t column = 0; column < width; column += kColumnQuantum)
      kernels_.transpose(rows + column * stride, stride, pairs, out + column, width);
  } else {
    pack_words(g, n, columns, k0, k, space, out);
  }
  kernels_.norms_pairs(out, width, static_cast<int>(width), pairs, kPanelColumns, norms);
}

}  // namespace dfpjax
