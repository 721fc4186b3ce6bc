// The tasks of a part of mode "tiles": the loops around the microkernel.
#include <limits>

#include "contraction/certificate.h"
#include "contraction/tiles.h"

namespace dfpjax {
namespace {

// Words of a packed B from memory. Those that are fetched so far ahead arrive in time.
constexpr int64_t kFetchAhead = 2048;

alignas(64) constexpr float kZeros[kPanelColumns] = {};

// Whether norms allow a kLowestPair in both operands, where chains are of 2 products.
bool may_hold_lowest_pairs(const TileSegments& a, const PanelsInBlocks& b,
                           const SegmentChains& chains, int panels) {
  constexpr int kShortest = kSegmentNorms - 1;
  for (int h = 0; h < panels; ++h)
    for (int s = 0; s < kSegments; ++s)
      if (chains.words[h][s] == 1 && a.norms.chunk[kShortest][s] >= kLowestPairNorm &&
          b.of[h].norms.chunk[kShortest][s] >= kLowestPairNorm)
        return true;
  return false;
}

}  // namespace

void Tiles::run_task(const Task& task, const Task* next, Workspace* w) {
  const int64_t m = task.tile * kTileRows, rows = task_rows(task);
  c_m_.offsets(m, m + rows, c_g_.offset(task.g), w->row_offsets.data());
  const int64_t first = task.split * p_.blocks_per_split;
  const int64_t end = std::min(first + p_.blocks_per_split, blocks_);
  const int64_t panels_per_pack = shared_b_ != nullptr ? 1 : kPanelsPerPack;
  const int64_t panel_words = PackerB::block_words(kPanelColumns, kBlock);
  for (int64_t group = first; group < end; group += group_) {
    const int64_t count = std::min(group_, end - group);
    TilesOfA a{w->packed_a.data(), p_.in_blocks ? nullptr : w->a_norms.data(),
               p_.in_blocks ? w->a_segments.as<TileSegments>() : nullptr};
    if (share_a_) {
      const int64_t at = (task.g * row_blocks_ + task.row_block) * blocks_ + group;
      a = shared_tiles(at * block_tiles_);
      const int64_t ahead = group + group_ < end ? std::min(group_, end - group - group_) : 0;
      w->next_a.set(shared_a_.as<int32_t>() + (at + group_) * a_words_, ahead * a_words_);
    } else {
      pack_a_.pack(task.g, m, rows, group, count, &w->packing, w->a.as<int32_t>(), a, block_tiles_);
      const int64_t next_group = group + group_;
      if (next_group < end) {
        pack_a_.preview(task.g, m, rows, next_group, std::min(group_, end - next_group),
                        &w->next_a);
      } else if (next != nullptr) {
        const int64_t next_first = next->split * p_.blocks_per_split;
        pack_a_.preview(next->g, next->tile * kTileRows, task_rows(*next), next_first,
                        std::min({group_, p_.blocks_per_split, blocks_ - next_first}), &w->next_a);
      }
    }
    const int64_t tiles = task.tile_end - task.tile;
    w->next_a.spread(tiles * (task.panel_end - task.panel) * count);
    for (int64_t panel = task.panel; panel < task.panel_end; panel += panels_per_pack) {
      const int64_t panel_end = std::min(panel + panels_per_pack, task.panel_end);
      const int64_t n = panel * kPanelColumns;
      const int64_t columns = std::min(panel_end * kPanelColumns, p_.N) - n;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t b = group + i;
        Norms b_norms[kPanelsPerPack];
        PanelsInBlocks b_segments[kPanelsPerPack];
        if (shared_b_ == nullptr) {
          pack_b_.pack(task.g, n, columns, block(b).k, block(b).size, &w->packing,
                       w->b.as<int32_t>(), panel_words, b_norms,
                       p_.in_blocks ? b_segments : nullptr, 1);
          if (b + 1 < end) {
            const Block k = block(b + 1);
            pack_b_.preview(task.g, n, columns, k.k, k.size, &w->next_b);
            w->next_b.spread(tiles * (panel_end - panel));
          }
        }
        for (int64_t p = panel; p < panel_end; ++p) {
          if (preview_b_)
            preview_shared(task, i + 1 < count ? p : p + 1, i + 1 < count ? b + 1 : group, w);
          const PanelOfB of_b =
              shared_b_ != nullptr
                  ? shared_b_->at(task.g, p, b)
                  : PanelOfB{w->b.as<int32_t>() + (p - panel) * panel_words, &b_norms[p - panel],
                             p_.in_blocks ? &b_segments[p - panel] : nullptr};
          run_panel(task, p, b, of_b, a.at(i * block_tiles_), w);
        }
      }
    }
  }
  if (splits_ == 1 && !scaling_.is_factor()) scale_rows(task, w);
  report_counts(task, w);
}

void Tiles::report_counts(const Task& task, Workspace* w) const {
  if (w->saturated > 0) chains_.saturated->add(p_, task.g, 0, w->saturated);
  w->saturated = 0;
  if (chains_.lengths == nullptr) return;
  for (int i = 0; i < kChainLengths; ++i) {
    chains_.lengths->add(p_, task.g, i, w->lengths[i]);
    w->lengths[i] = 0;
  }
}

// Chooses the chain of a cell. If its sums could overflow int32, they are summed exactly and
// saturated.
void Tiles::choose_chain(const Norms& row, const Norms& column, Lowest* b_has_lowest_pair,
                         CellArgs* cell, Workspace* w) const {
  const bool certified = chains_.length == 0;
  const bool checked = !chains_.bounded;
  const int longest = checked ? chain_pairs(row, column) : kBlock / 2;
  cell->chain = certified ? longest : chains_.length / 2;
  cell->saturated = nullptr;
  if (longest < cell->chain) {
    cell->saturated = &w->saturated;
  } else if (cell->chain == 1) {
    constexpr int kShortest = kNorms - 1;
    const bool possible = !checked || (row.chunk[kShortest] >= kLowestPairNorm &&
                                       column.chunk[kShortest] >= kLowestPairNorm);
    // 2^31 saturates to the largest int32, which the conversion to float32 rounds back to 2^31.
    if (possible && may_meet(*cell, b_has_lowest_pair))
      cell->saturated = certified ? &w->exact : &w->saturated;
  }
}

// The same for a cell of operands in blocks.
void Tiles::choose_chains(const TileSegments& a, const PanelsInBlocks& b, Lowest* b_has_lowest_pair,
                          CellArgs* cell, SegmentChains* chains, Workspace* w) const {
  const int panels = cell->columns > kBlocksPanelColumns ? kHalves : 1;
  const bool certified = chains_.length == 0, checked = !chains_.bounded;
  if (checked) kernels_.certify(a.norms, b.of, panels, chains);
  bool safe = true;
  if (!certified) {
    const int32_t words = std::min(chains_.length / 2, kSegment / 2);
    int32_t* const of_segments = chains->words[0];
    for (int i = 0; i < panels * kSegments; ++i) safe &= !checked || of_segments[i] >= words;
    std::fill_n(of_segments, kHalves * kSegments, words);
    chains->shortest = std::min(words, 4);
  }
  cell->saturated = nullptr;
  if (!safe)
    cell->saturated = &w->saturated;
  else if (chains->shortest == 1 && (!checked || may_hold_lowest_pairs(a, b, *chains, panels)) &&
           may_meet(*cell, b_has_lowest_pair))
    cell->saturated = certified ? &w->exact : &w->saturated;
}

// Counts multiply-adds by their chains.
void Tiles::count_chains(const CellArgs& cell, const SegmentChains& chains, int64_t size,
                         Workspace* w) const {
  for (int64_t s = 0; s * kSegment < size; ++s)
    for (int h = 0; h * kBlocksPanelColumns < cell.narrow; ++h) {
      const int columns = std::min(kBlocksPanelColumns, cell.narrow - h * kBlocksPanelColumns);
      w->lengths[chain_index(chains.words[h][s])] +=
          cell.rows * columns * std::min<int64_t>(kSegment, size - s * kSegment);
    }
}

// Whether both operands of a cell have a kLowestPair.
bool Tiles::may_meet(const CellArgs& cell, Lowest* b_has_lowest_pair) const {
  bool found = false;
  if (cell.a_row == 1) {
    for (int64_t k = 0; k < cell.pairs; ++k)
      found |= has_lowest_pair(cell.a + k * cell.a_pair, cell.rows);
  } else {
    for (int64_t i = 0; i < cell.rows; ++i)
      found |= has_lowest_pair(cell.a + i * cell.a_row, cell.pairs);
  }
  if (!found) return false;
  if (*b_has_lowest_pair == Lowest::kUnknown)
    *b_has_lowest_pair =
        has_lowest_pair(cell.b, int64_t{cell.pairs} * cell.columns) ? Lowest::kSome : Lowest::kNone;
  return *b_has_lowest_pair == Lowest::kSome;
}

// Previews the packed block of B that is used next.
void Tiles::preview_shared(const Task& task, int64_t panel, int64_t index, Workspace* w) const {
  if (panel >= task.panel_end) return;
  w->next_b.set(shared_b_->at(task.g, panel, index).words,
                PackerB::block_words(columns(panel), block(index).size));
  w->next_b.spread(task.tile_end - task.tile);
}

// Fetches the cache lines that the last block of a tile writes.
void Tiles::fetch_outputs(const Task& task, int64_t panel, int64_t tile, const Workspace& w) const {
  const int64_t* at = &w.row_offsets[static_cast<size_t>((tile - task.tile) * kTileRows)];
  for (int64_t r = 0; r < std::min<int64_t>(kTileRows, p_.M - tile * kTileRows); ++r)
    for (int64_t n = 0; n < columns(panel); n += 16)
      __builtin_prefetch(c_ + at[r] + panel * kPanelColumns + n, 1, 3);
}

// Runs all tiles of one panel and one k-block. Running sums stay in the workspace, close to the
// core. The last block of the split writes them to their destination.
void Tiles::run_panel(const Task& task, int64_t panel, int64_t b, const PanelOfB& of_b,
                      const TilesOfA& of_a, Workspace* w) {
  const int64_t split_begin = task.split * p_.blocks_per_split;
  const bool first = b == split_begin;
  const bool last = b == std::min(split_begin + p_.blocks_per_split, blocks_) - 1;
  if (last && !contiguous_columns_)
    c_n_.offsets(panel * kPanelColumns, panel * kPanelColumns + columns(panel), 0,
                 w->column_offsets.data());
  const float* in[kTileRows];
  float* out[kTileRows];
  float final_scales[kTileRows];
  std::fill(final_scales, final_scales + kTileRows, scaling_.factor());
  Lowest b_has_lowest_pair = Lowest::kUnknown;
  CellArgs cell;
  cell.columns = static_cast<int32_t>(round_up(columns(panel), kColumnQuantum));
  cell.in = in;
  cell.out = out;
  cell.memory = w->cell;
  cell.stream = false;
  cell.narrow = static_cast<int32_t>(columns(panel));
  cell.few_rows = few_rows_;
  // With several groups, every panel of the task has its own sums.
  const int64_t sums_panel = (panel - task.panel) % std::max<int64_t>(sum_panels_, 1);
  const bool fetch = last && !stream_ && contiguous_columns_ && splits_ == 1;
  const auto pairs = static_cast<int32_t>(ceil_div(block(b).size, 2));
  const int32_t* const b_quads =
      columns(panel) <= kMostNarrow && of_a.packed->pair_stride == 1
          ? word_quads(of_b.words, cell.columns, cell.narrow, pairs, w->b_quads)
          : nullptr;
  for (int64_t tile = task.tile; tile < task.tile_end; ++tile) {
    const int64_t local = tile - task.tile;
    const PackedA& a = of_a.packed[local];
    cell.a = a.words;
    cell.a_row = a.row_stride;
    cell.a_pair = a.pair_stride;
    cell.b = of_b.words;
    cell.b_quads = b_quads;
    cell.pairs = pairs;
    cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, p_.M - tile * kTileRows));
    CellInBlocks blocks;
    if (p_.in_blocks) {
      blocks.a = of_a.segments + local;
      blocks.b = of_b.segments;
      blocks.last = last;
      choose_chains(*blocks.a, *blocks.b, &b_has_lowest_pair, &cell, &blocks.chains, w);
      if (chains_.lengths != nullptr) count_chains(cell, blocks.chains, block(b).size, w);
    } else {
      choose_chain(of_a.norms[local], *of_b.norms, &b_has_lowest_pair, &cell, w);
      if (chains_.lengths != nullptr)
        w->lengths[chain_index(cell.chain)] += cell.rows * columns(panel) * block(b).size;
    }
    w->next_a.step();
    w->next_b.step();
    cell.fetch_ahead = few_rows_ && tile == task.tile ? kFetchAhead : 0;
    if (fetch && tile + 1 < task.tile_end) fetch_outputs(task, panel, tile + 1, *w);
    float* sums = first && last ? nullptr : w->sums_of(sums_panel, local);
    for (int i = 0; i < kTileRows; ++i) in[i] = first ? kZeros : sums + i * kPanelColumns;
    if (p_.in_blocks) {
      blocks.bases = w->bases_of(sums_panel, local);
      blocks.running = first ? nullptr : sums;
    }
    cell.final_scales = splits_ == 1 && last && scaling_.is_factor() ? final_scales : nullptr;
    if (last) {
      finish_tile(task, panel, tile, &cell, p_.in_blocks ? &blocks : nullptr, out, w);
      continue;
    }
    for (int i = 0; i < kTileRows; ++i) out[i] = sums + i * kPanelColumns;
    run_cell(cell, p_.in_blocks ? &blocks : nullptr);
  }
}

// Runs a cell. In blocks, the last one of a sum finishes it.
void Tiles::run_cell(const CellArgs& cell, const CellInBlocks* blocks) const {
  if (blocks == nullptr) return kernels_.cell(cell);
  BlockCellArgs args;
  args.a = blocks->a;
  args.b = blocks->b->of;
  args.chains = &blocks->chains;
  args.bases = blocks->bases->of;
  args.running = blocks->running;
  args.finish = splits_ == 1 && blocks->last;
  const bool finished = kernels_.cell_in_blocks(cell, args);
  const uint64_t lost_rows = args.a->not_finite;
  for (int h = 0; h * kBlocksPanelColumns < cell.narrow; ++h) {
    const uint64_t lost = args.b[h].not_finite;
    if (finished && (lost | lost_rows) == 0) continue;
    const int end = std::min<int>((h + 1) * kBlocksPanelColumns, cell.narrow);
    for (int i = 0; i < cell.rows; ++i)
      for (int j = h * kBlocksPanelColumns; j < end; ++j) {
        float& out = cell.out[i][j];
        const int32_t base = args.bases[h][i];
        if (!finished) out = scale_once(out, base == kUnset ? 0 : base);
        if ((lost_rows >> i | lost >> j % kBlocksPanelColumns) & 1)
          out = std::numeric_limits<float>::quiet_NaN();
      }
  }
}

// Runs the last cell of a tile. The microkernel writes the outputs in place if it can.
void Tiles::finish_tile(const Task& task, int64_t panel, int64_t tile, CellArgs* cell,
                        const CellInBlocks* blocks, float** out, Workspace* w) {
  const int rows = cell->rows;
  const int64_t* offsets = &w->row_offsets[static_cast<size_t>((tile - task.tile) * kTileRows)];
  const int64_t n = panel * kPanelColumns, count = columns(panel);
  if (splits_ > 1) {
    const int64_t row = (task.split * p_.G + task.g) * p_.M + tile * kTileRows;
    for (int i = 0; i < rows; ++i) out[i] = partial_.as<float>() + (row + i) * partial_stride_ + n;
    run_cell(*cell, blocks);
    if (blocks != nullptr)
      for (int i = 0; i < rows; ++i)
        for (int h = 0; h < kHalves; ++h)
          partial_bases_[static_cast<size_t>(((row + i) * panels_ + panel) * kHalves + h)] =
              blocks->bases->of[h][i];
    return;
  }
  if (contiguous_columns_ && cell->columns == count) {
    uintptr_t address = 0;
    for (int i = 0; i < rows; ++i) {
      out[i] = c_ + offsets[i] + n;
      address |= reinterpret_cast<uintptr_t>(out[i]);
    }
    cell->stream = stream_ && address % 64 == 0;
    return run_cell(*cell, blocks);
  }
  for (int i = 0; i < rows; ++i) out[i] = w->bounce[i];
  run_cell(*cell, blocks);
  for (int i = 0; i < rows; ++i) {
    float* row = c_ + offsets[i];
    if (contiguous_columns_) {
      std::copy_n(w->bounce[i], count, row + n);
    } else {
      const int64_t* at = w->column_offsets.data();
      for (int64_t j = 0; j < count; ++j) row[at[j]] = w->bounce[i][j];
    }
  }
}

void Tiles::scale_rows(const Task& task, Workspace* w) const {
  for (int64_t panel = task.panel; panel < task.panel_end; ++panel) {
    const int64_t n = panel * kPanelColumns;
    c_n_.offsets(n, n + columns(panel), 0, w->column_offsets.data());
    const int64_t end = std::min(task.tile_end * kTileRows, p_.M);
    for (int64_t m = task.tile * kTileRows; m < end; ++m)
      scaling_.apply(task.g, m, n, n + columns(panel), w->column_offsets.data(),
                     c_ + w->row_offsets[static_cast<size_t>(m - task.tile * kTileRows)]);
  }
}

}  // namespace dfpjax
