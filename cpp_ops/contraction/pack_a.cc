// Packing of A.
#include <algorithm>
#include <cstdlib>

#include "contraction/packing.h"
#include "contraction/shifts.h"

namespace dfpjax {
namespace {

constexpr int64_t kPairs = kBlock / 2;

void mark_lost(TileSegments* tiles, int64_t row) {
  tiles[row / kTileRows].not_finite |= uint64_t{1} << row % kTileRows;
}

}  // namespace

void PackerA::finish(const int32_t* common, int64_t stride, int segments, int64_t rows,
                     TileSegments* tiles) const {
  for (int64_t row = 0; row < rows; row += kTileRows)
    kernels_.finish_tile(common + row, stride, segments,
                         static_cast<int>(std::min<int64_t>(kTileRows, rows - row)), tiles++);
}

PackerA::PackerA(const Part& part, const int16_t* a, const int32_t* exponents,
                 const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(a + part.base_a),
      g_(part.g, &Dim::stride_a, &part.windows),
      m_(part.m, &Dim::stride_a, &part.windows),
      k_(part.k, &Dim::stride_a, &part.windows),
      origin_(make_origin(part.windows)),
      bounds_(make_bounds(part.windows)),
      exponents_(part.in_blocks ? std::make_unique<Exponents>(
                                      part.grid_a, exponents, part.base_a,
                                      k_.run_extent() >= m_.run_extent() ? part.m : part.k,
                                      &Dim::stride_a, &part.windows, kernels)
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
  if (exponents_ == nullptr) return;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t tile = 0; tile * kTileRows < rows; ++tile)
      mark_far(std::min<int64_t>(kTileRows, rows - tile * kTileRows),
               ceil_div(block_size(block + i), 2), to.packed[i * stride + tile],
               &to.segments[i * stride + tile]);
}

void PackerA::mark_far(int64_t rows, int64_t pairs, const PackedA& packed, TileSegments* tile) {
  int32_t found = 0;
  for (int64_t k = 0; k < pairs; k += kSegment / 2)
    for (int64_t row = 0; row < rows; ++row) {
      if (tile->exponents[k / (kSegment / 2)][row] != kAbsent) continue;
      const int32_t* const words = packed.words + row * packed.row_stride;
      for (int64_t i = k; i < std::min<int64_t>(k + kSegment / 2, pairs); ++i)
        found |= words[i * packed.pair_stride];
    }
  if (found != 0) tile->range = kFarRange;
}

void PackerA::pack_along_m(const Point& origin, int64_t m, int64_t rows, int64_t block,
                           int64_t count, PackingSpace* space, int32_t* out, const TilesOfA& to,
                           int64_t stride) const {
  const int64_t width = pair_stride(rows), tiles = ceil_div(rows, kTileRows);
  const Run* runs = space->runs.get();
  const int run_count = m_.runs(m, m + rows, space->runs.get());
  for (int64_t i = 0; i < count; ++i, out += kPairs * width) {
    const int64_t k0 = (block + i) * kBlock;
    const int k = static_cast<int>(block_size(block + i));
    const TilesOfA here = to.at(i * stride);
    const Point* points = space->points.get();
    k_.points(k0, k0 + k, origin, space->points.get());
    const int padding = static_cast<int>(width - rows), pairs = static_cast<int>(ceil_div(k, 2));
    if (exponents_ == nullptr) {
      kernels_.pack_pairs(base_, bounds_, points, k, runs, run_count, space->zeros.data(),
                          space->edge.get(), out, width, padding);
      if (wants_norms_)
        kernels_.norms_pairs(out, width, static_cast<int>(rows), pairs, kTileRows, here.norms);
    } else {
      const int cut_count = align_runs(origin, rows, k, run_count, space, here.segments);
      kernels_.pack_shifted_pairs(base_, bounds_, points, k, runs, run_count,
                                  {space->cut_runs.data(), cut_count, space->shifts.data(), kBlock},
                                  dithering_of(*exponents_, 0, m), space->zeros.data(),
                                  space->edge.get(), out, width, padding);
      if (wants_norms_)
        kernels_.segment_norms_pairs(out, width, static_cast<int>(rows), pairs, kTileRows,
                                     &here.segments->norms, sizeof(TileSegments));
    }
    for (int64_t t = 0; t < tiles; ++t) here.packed[t] = {out + t * kTileRows, 1, width};
  }
}

int PackerA::align_runs(const Point& origin, int64_t rows, int k, int run_count,
                        PackingSpace* space, TileSegments* tiles) const {
  exponents_->find(space->points.get(), k, &space->points_space);
  const int cut_count = space->look_up(*exponents_, origin.offset, bounds_, k, kBlock,
                                       space->runs.get(), run_count, 0, true, 0);
  const Run* const runs = space->cut_runs.data();
  for (int64_t t = 0; t < ceil_div(rows, kTileRows); ++t) tiles[t].not_finite = 0;
  const int segments = static_cast<int>(ceil_div(k, kSegment));
  const int64_t stride = space->make_common(rows);
  int32_t* of_rows = space->common.data();
  for (int r = 0; r < cut_count; ++r) {
    int32_t* const own = space->exponents.data() + r * kBlock;
    int8_t* const shifts = space->shifts.data() + r * kBlock;
    int32_t common[kSegments];
    if (kernels_.align_points(own, k, common, shifts) >= kNotFiniteFrom) {
      take_finite(own, k, [&](int64_t) {
        for (int64_t i = 0; i < runs[r].length; ++i) mark_lost(tiles, runs[r].start + i);
      });
      kernels_.align_points(own, k, common, shifts);
    }
    for (int s = 0; s < segments; ++s) std::fill_n(of_rows + s * stride, runs[r].length, common[s]);
    of_rows += runs[r].length;  // runs cover the rows in their order
  }
  finish(space->common.data(), stride, segments, rows, tiles);
  return cut_count;
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
  if (!in_place || aligned) m_.points(m, m + rows, origin, space->points.get());
  if (aligned) exponents_->find(space->points.get(), static_cast<int>(rows), &space->points_space);
  space->cut_firsts.assign(1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k0 = (block + i) * kBlock, k = block_size(block + i);
    Run* const runs = &space->runs[static_cast<size_t>(i * kBlock)];
    const int run_count = k_.runs(k0, k0 + k, runs);
    space->run_counts[static_cast<size_t>(i)] = run_count;
    if (!aligned) continue;
    const int64_t first = space->cut_firsts.back();
    space->cut_firsts.push_back(first + space->look_up(*exponents_, origin.offset, bounds_,
                                                       static_cast<int>(rows), rows, runs,
                                                       run_count, kSegment, false, first));
    align_rows(rows, i, space, to.segments + i * stride);
  }
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
      const bool shifted = aligned && space->shifted[static_cast<size_t>(i)];
      if (shifted) {
        const auto first = space->cut_firsts[static_cast<size_t>(i)];
        const auto end = space->cut_firsts[static_cast<size_t>(i + 1)];
        kernels_.pack_shifted_rows(base_, bounds_, points, tile_rows, runs, run_count,
                                   {space->cut_runs.data() + first, static_cast<int>(end - first),
                                    space->shifts.data() + first * rows + row, rows},
                                   dithering_of(*exponents_, 0, m + row), copy, width);
      } else if (!in_place) {
        kernels_.pack_rows(base_, bounds_, points, tile_rows, runs, run_count, copy, width);
      }
      *here.packed = shifted || !in_place
                         ? PackedA{reinterpret_cast<const int32_t*>(copy), width / 2, 1}
                         : PackedA{reinterpret_cast<const int32_t*>(in + row * row_step_ +
                                                                    (block + i) * kBlock),
                                   row_step_ / 2, 1};
      if (!wants_norms_) continue;
      const auto* words = reinterpret_cast<const int16_t*>(here.packed->words);
      const int64_t step = here.packed->row_stride * 2;
      if (aligned)
        kernels_.segment_norms_rows(words, step, tile_rows, static_cast<int>(width),
                                    &here.segments->norms);
      else
        kernels_.norms_rows(words, step, tile_rows, static_cast<int>(width), here.norms);
    }
  }
}

void PackerA::align_rows(int64_t rows, int64_t i, PackingSpace* space, TileSegments* tiles) const {
  const int64_t first = space->cut_firsts[static_cast<size_t>(i)];
  const auto count = static_cast<int>(space->cut_firsts[static_cast<size_t>(i + 1)] - first);
  const Run* const cut = space->cut_runs.data() + first;
  const int size = static_cast<int>(rows);
  int32_t* const own = space->exponents.data() + first * rows;
  if (space->shifted.size() <= static_cast<size_t>(i))
    space->shifted.resize(static_cast<size_t>(i + 1));
  space->shifted[static_cast<size_t>(i)] = false;
  for (int64_t t = 0; t < ceil_div(rows, kTileRows); ++t) tiles[t].not_finite = 0;
  for (int r = 0; r < count; ++r)
    if (kernels_.largest_exponent(own + r * rows, size) >= kNotFiniteFrom)
      take_finite(own + r * rows, rows, [&](int64_t row) { mark_lost(tiles, row); });
  // Where each segment has one run, its exponents are the common ones, and nothing is shifted.
  const int segments = segment_of(cut[count - 1]) + 1;
  if (segments == count) return finish(own, rows, segments, rows, tiles);
  const int64_t stride = space->make_common(rows);
  int32_t* const common = space->common.data();
  for (int r = 0; r < count; ++r)
    kernels_.raise_exponents(own + r * rows, size, common + segment_of(cut[r]) * stride);
  finish(common, stride, segments, rows, tiles);
  bool shifted = false;
  for (int r = 0; r < count; ++r)
    shifted |= kernels_.shifts_to(common + segment_of(cut[r]) * stride, false, own + r * rows, size,
                                  space->shifts.data() + (first + r) * rows);
  space->shifted[static_cast<size_t>(i)] = shifted;
}

}  // namespace dfpjax
