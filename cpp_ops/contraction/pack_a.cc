// Packing of A.
#include <algorithm>
#include <cstdlib>

#include "contraction/packing.h"
#include "contraction/shifts.h"

namespace dfpjax {
namespace {

constexpr int64_t kPairs = kBlock / 2;

// Aligns the rows of cut runs along rows, each run by itself.
void align_rows_of_pairs(const int32_t* exponents, int k, const Run* runs, int run_count,
                         int8_t* shifts, TileExponents* tiles, int64_t tile_count) {
  std::vector<ExponentRange> ranges(static_cast<size_t>(run_count));
  for_changes(exponents, k, run_count, 0, run_count, [&](int i, int r) {
    ranges[static_cast<size_t>(r)].add(i / kSegment, exponents[i * run_count + r]);
  });
  std::vector<SegmentExponents> of_runs;
  for (const ExponentRange& range : ranges) of_runs.push_back(range.exponents());
  set_shifts(
      exponents, k, run_count, 0, run_count,
      [&](int r) -> const SegmentExponents& { return of_runs[static_cast<size_t>(r)]; }, shifts);
  for (int64_t t = 0; t < tile_count; ++t) tiles[t].wide = false;
  for (int r = 0; r < run_count; ++r)
    for (int64_t row = runs[r].start; row < runs[r].start + runs[r].length; ++row) {
      TileExponents& tile = tiles[row / kTileRows];
      tile.rows[static_cast<size_t>(row % kTileRows)] = of_runs[static_cast<size_t>(r)];
      tile.wide |= of_runs[static_cast<size_t>(r)].wide;
    }
}

}  // namespace

PackerA::PackerA(const Part& part, const int16_t* a, const int32_t* exponents,
                 const ContractionKernels& kernels, bool norms)
    : kernels_(kernels),
      base_(a + part.base_a),
      g_(part.g, &Dim::stride_a, &part.windows),
      m_(part.m, &Dim::stride_a, &part.windows),
      k_(part.k, &Dim::stride_a, &part.windows),
      origin_{},
      bounds_(make_bounds(part.windows)),
      exponents_(part.in_blocks ? std::make_unique<Exponents>(
                                      part.grid_a, exponents, part.base_a,
                                      k_.run_extent() >= m_.run_extent() ? part.m : part.k,
                                      &Dim::stride_a, &part.windows)
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
    if (space->cut_runs.size() < static_cast<size_t>(rows))
      space->cut_runs.resize(static_cast<size_t>(rows));
    run_count = exponents_->cut_runs(origin.offset, runs, run_count, false, space->cut_runs.data());
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
      align_rows_of_pairs(space->exponents.data(), k, runs, run_count, space->shifts.data(),
                          here.exponents, tiles);
      kernels_.pack_shifted_pairs(base_, points, k, runs, run_count, space->shifts.data(),
                                  dithering_of(*exponents_, 0, m), space->zeros.data(), out, width,
                                  padding);
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
    const Run* const runs = &space->runs[static_cast<size_t>(i * kBlock)];
    const int run_count = k_.runs(k0, k0 + k, &space->runs[static_cast<size_t>(i * kBlock)]);
    space->run_counts[static_cast<size_t>(i)] = run_count;
    if (!aligned || !exponents_->whole_rows()) continue;
    const auto room = static_cast<size_t>(count * kBlock);
    if (space->cut_runs.size() < room) space->cut_runs.resize(room);
    if (space->cut_counts.size() < room) space->cut_counts.resize(room);
    space->cut_counts[static_cast<size_t>(i)] = exponents_->cut_runs(
        origin.offset, runs, run_count, true, &space->cut_runs[static_cast<size_t>(i * kBlock)]);
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
        copied = pack_aligned_rows(origin, m + row, tile_rows, points, i, space, copy, width,
                                   here.exponents);
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

bool PackerA::pack_aligned_rows(const Point& origin, int64_t m, int rows, const Point* points,
                                int64_t i, PackingSpace* space, int16_t* out, int64_t stride,
                                TileExponents* exponents) const {
  if (!exponents_->whole_rows())
    return pack_cut_rows(m, rows, points, i, space, out, stride, exponents);
  const Run* const cut = &space->cut_runs[static_cast<size_t>(i * kBlock)];
  const int count = space->cut_counts[static_cast<size_t>(i)];
  space->look_up(*exponents_, origin.offset, bounds_, points, rows, cut, count);
  bool shifted = false;
  exponents->wide = false;
  for (int r = 0; r < rows; ++r) {
    const int32_t* own = space->exponents.data() + r * count;
    int8_t* shifts = space->shifts.data() + r * count;
    SegmentExponents& of_row = exponents->rows[static_cast<size_t>(r)];
    if (r > 0 && std::equal(own, own + count, own - count)) {  // of the same blocks
      of_row = exponents->rows[static_cast<size_t>(r - 1)];
      std::copy(shifts - count, shifts, shifts);
      continue;
    }
    ExponentRange range;
    for (int j = 0; j < count; ++j) range.add(segment_of(cut[j]), own[j]);
    of_row = range.exponents();
    exponents->wide |= of_row.wide;
    for (int j = 0; j < count; ++j) {
      shifts[j] =
          static_cast<int8_t>(shift_to(of_row.at[static_cast<size_t>(segment_of(cut[j]))], own[j]));
      shifted |= shifts[j] != 0;
    }
  }
  if (!shifted && source_ == Source::kInPlace) return false;
  if (shifted)
    kernels_.pack_shifted_rows(base_, points, rows, cut, count, space->shifts.data(),
                               dithering_of(*exponents_, 0, m), out, stride);
  else
    kernels_.pack_rows(base_, bounds_, points, rows, &space->runs[static_cast<size_t>(i * kBlock)],
                       space->run_counts[static_cast<size_t>(i)], out, stride);
  return true;
}

// For rows in which blocks begin at different places.
bool PackerA::pack_cut_rows(int64_t m, int rows, const Point* points, int64_t i,
                            PackingSpace* space, int16_t* out, int64_t stride,
                            TileExponents* exponents) const {
  if (space->pieces.empty()) space->pieces.resize(kTileRows * kBlock);
  const Run* const runs = &space->runs[static_cast<size_t>(i * kBlock)];
  const int run_count = space->run_counts[static_cast<size_t>(i)];
  int counts[kTileRows];
  bool shifted = source_ != Source::kInPlace;
  exponents->wide = false;
  for (int r = 0; r < rows; ++r) {
    Piece* pieces = &space->pieces[static_cast<size_t>(r * kBlock)];
    counts[r] = exponents_->cut(base_, bounds_, points[r], runs, run_count,
                                static_cast<int>(stride), pieces);
    const SegmentExponents of_row = exponents_of(pieces, counts[r]);
    exponents->rows[static_cast<size_t>(r)] = of_row;
    exponents->wide |= of_row.wide;
    shifted |= set_shifts(of_row, pieces, counts[r]);
  }
  if (!shifted) return false;
  for (int r = 0; r < rows; ++r)
    kernels_.pack_pieces(&space->pieces[static_cast<size_t>(r * kBlock)], counts[r],
                         dithering_of(*exponents_, 0, 0), m + r, out + r * stride);
  return true;
}

}  // namespace dfpjax
