// Runs a part of mode "tiles": blocking, parallel phases and the loops around the microkernel.
// Phase 1 packs B if several row blocks share it. Phase 2 computes: a task is a block of row tiles
// times a range of column panels times one split of k. Phase 3 adds up the splits. How the work is
// cut into tasks depends on the machine; the bits of the result do not.
#include <algorithm>

#include "blocking.h"
#include "certificate.h"
#include "contract.h"
#include "index.h"
#include "packing.h"
#include "scaling.h"
#include "scratch.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dfpjax {
namespace {

// Cache budgets, for a second-level cache of 512 KiB or more.
constexpr int64_t kPackedABytes = 256 << 10;   // packed k-blocks of A per pass over the panels
constexpr int64_t kResidentBytes = 512 << 10;  // what is larger is fetched ahead when it is used

alignas(64) constexpr float kZeros[kPanelColumns] = {};

class Tiles : public Job {
 public:
  Tiles(const Part& part, const Operands& operands, const KernelTable& kernels, int threads);
  void enlist(std::vector<Stage>* stages) override;

 private:
  struct Task {
    int64_t g, split, row_block;
    int64_t tile, tile_end;    // rows, in tiles
    int64_t panel, panel_end;  // columns, in panels
  };
  // What a thread needs to run tasks.
  struct Workspace {
    explicit Workspace(const Tiles& t);
    PackingSpace packing;
    Preview next_a, next_b;
    Scratch a, b, sums;
    std::vector<PackedA> packed_a;
    std::vector<Norms> a_norms;
    std::vector<int64_t> row_offsets, column_offsets;
    alignas(64) int32_t b_quads[kMostNarrow * kBlock / 2];
    alignas(64) float bounce[kTileRows][kPanelColumns];

    // Running sums of a tile and panel of the task, panels counted from its first.
    float* sums_of(int64_t panel, int64_t tile) const {
      return sums.as<float>() + (panel * tiles + tile) * kTileRows * kPanelColumns;
    }
    int64_t tiles;  // of a panel of sums
  };
  struct Block {
    int64_t k, size;
  };

  Task task(int64_t index) const;
  void pack_a(int64_t index, PackingSpace* space) const;
  void pack_b(int64_t index, PackingSpace* space) const;
  void run_task(const Task& task, const Task* next, Workspace* w) const;
  void run_panel(const Task& task, int64_t panel, int64_t block, const int32_t* b,
                 const Norms& b_norms, const PackedA& a, const Norms* a_norms, Workspace* w) const;
  void preview_shared(const Task& task, int64_t panel, int64_t block, Workspace* w) const;
  void fetch_outputs(const Task& task, int64_t panel, int64_t tile, const Workspace& w) const;
  void finish_tile(const Task& task, int64_t panel, int64_t tile, CellArgs* cell, float** out,
                   Workspace* w) const;
  void scale_rows(const Task& task, Workspace* w) const;
  void combine(int64_t low, int64_t high, Workspace* w) const;

  int64_t task_rows(const Task& task) const {
    return std::min(task.tile_end * kTileRows, p_.M) - task.tile * kTileRows;
  }
  Block block(int64_t index) const {
    return {index * kBlock, std::min<int64_t>(kBlock, p_.K - index * kBlock)};
  }
  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, p_.N - panel * kPanelColumns);
  }
  int32_t* shared_block(int64_t g, int64_t panel, int64_t block) const {
    return shared_b_.as<int32_t>() + g * shared_group_words_ + panel * shared_panel_words_ +
           block * PackerB::block_words(columns(panel), kBlock);
  }

  const Part& p_;
  const KernelTable& kernels_;
  float* const c_;
  const PackerA pack_a_;
  const PackerB pack_b_;
  const Axis c_g_, c_m_, c_n_;
  const Scaling scaling_;
  const bool contiguous_columns_;
  const int64_t blocks_, splits_, tiles_, panels_;

  int64_t row_blocks_, panel_ranges_;
  int64_t block_tiles_;  // most tiles of a row block
  int64_t group_;        // k-blocks of A packed at a time
  int64_t sum_panels_;   // panels of a task that have running sums at the same time
  bool stream_;

  int64_t a_words_;  // of a packed k-block of a row block of A

  bool share_a_;
  Scratch shared_a_;
  std::vector<PackedA> shared_packed_;
  std::vector<Norms> shared_a_norms_;

  bool share_b_, preview_b_;
  int64_t shared_panel_words_, shared_group_words_;
  Scratch shared_b_;
  std::vector<Norms> shared_norms_;

  int64_t partial_stride_;  // of one row of partial sums
  Scratch partial_;

  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one for each worker
};

Tiles::Tiles(const Part& part, const Operands& operands, const KernelTable& kernels, int threads)
    : p_(part),
      kernels_(kernels),
      c_(operands.c + part.base_c),
      pack_a_(part, operands.a, kernels),
      pack_b_(part, operands.b, kernels),
      c_g_(part.g, &Dim::stride_c, nullptr),
      c_m_(part.m, &Dim::stride_c, nullptr),
      c_n_(part.n, &Dim::stride_c, nullptr),
      scaling_(part, operands.ea, operands.eb),
      contiguous_columns_(c_n_.run_extent() == part.N),
      blocks_(ceil_div(part.K, kBlock)),
      splits_(ceil_div(blocks_, part.blocks_per_split)),
      tiles_(ceil_div(part.M, kTileRows)),
      panels_(ceil_div(part.N, kPanelColumns)),
      workspaces_(static_cast<size_t>(threads)) {
  const int64_t split_blocks = std::min(p_.blocks_per_split, blocks_);
  // Overlapping rows would make many times the operand of it.
  const bool can_share_a = pack_a_.source() != Source::kInPlace && !pack_a_.overlapping();
  const Blocking blocking =
      choose_blocking({p_.G * splits_, tiles_, panels_, std::min(split_blocks * kBlock, p_.K),
                       pack_a_.source(), can_share_a},
                      threads);
  row_blocks_ = blocking.row_blocks;
  panel_ranges_ = blocking.panel_ranges;
  block_tiles_ = ceil_div(tiles_, row_blocks_);
  a_words_ = pack_a_.block_words(block_tiles_ * kTileRows);
  group_ = std::clamp<int64_t>(kPackedABytes / (a_words_ * int64_t{sizeof(int32_t)}), 1,
                               split_blocks);
  share_a_ = blocking.share_a;
  if (share_a_) {
    const int64_t count = p_.G * row_blocks_ * blocks_;
    shared_a_ = Scratch(count * a_words_ * int64_t{sizeof(int32_t)});
    shared_packed_.resize(static_cast<size_t>(count));
    shared_a_norms_.resize(static_cast<size_t>(count * block_tiles_));
  }
  share_b_ = row_blocks_ > 1;
  shared_panel_words_ = blocks_ * PackerB::block_words(kPanelColumns, kBlock);
  shared_group_words_ = (panels_ - 1) * shared_panel_words_ +
                        blocks_ * PackerB::block_words(columns(panels_ - 1), kBlock);
  preview_b_ = share_b_ && shared_group_words_ * int64_t{sizeof(int32_t)} > kResidentBytes;
  if (share_b_) {
    shared_b_ = Scratch(p_.G * shared_group_words_ * int64_t{sizeof(int32_t)});
    shared_norms_.resize(static_cast<size_t>(p_.G * panels_ * blocks_));
  }
  partial_stride_ = round_up(p_.N, kColumnQuantum);
  if (splits_ > 1)
    partial_ = Scratch(splits_ * p_.G * p_.M * partial_stride_ * int64_t{sizeof(float)});
  sum_panels_ = split_blocks == 1       ? 0
                : split_blocks > group_ ? ceil_div(panels_, panel_ranges_)
                                        : (share_b_ ? 1 : kPanelsPerPack);
  stream_ = splits_ == 1 && scaling_.is_factor() && contiguous_columns_ &&
            p_.G * p_.M * p_.N * int64_t{sizeof(float)} >= kStreamBytes;
}

Tiles::Workspace::Workspace(const Tiles& t)
    : packing(t.block_tiles_ * kTileRows, t.group_),
      a(t.share_a_ ? 0 : t.group_ * t.a_words_ * int64_t{sizeof(int32_t)}),
      b(kPanelsPerPack * PackerB::block_words(kPanelColumns, kBlock) * int64_t{sizeof(int32_t)}),
      sums(t.sum_panels_ * t.block_tiles_ * kTileRows * kPanelColumns * int64_t{sizeof(float)}),
      packed_a(static_cast<size_t>(t.group_)),
      a_norms(static_cast<size_t>(t.group_ * t.block_tiles_)),
      row_offsets(static_cast<size_t>(t.block_tiles_ * kTileRows)),
      column_offsets(kPanelColumns),
      tiles(t.block_tiles_) {}

Tiles::Task Tiles::task(int64_t index) const {
  Task t;
  const int64_t range = index % panel_ranges_;
  index /= panel_ranges_;
  const int64_t rows = index % row_blocks_;
  index /= row_blocks_;
  t.split = index % splits_;
  t.g = index / splits_;
  t.row_block = rows;
  // Blocks and ranges of nearly equal size, for balance.
  t.tile = tiles_ * rows / row_blocks_;
  t.tile_end = tiles_ * (rows + 1) / row_blocks_;
  t.panel = panels_ * range / panel_ranges_;
  t.panel_end = panels_ * (range + 1) / panel_ranges_;
  return t;
}

void Tiles::enlist(std::vector<Stage>* stages) {
  const int64_t threads = static_cast<int64_t>(workspaces_.size());
  const auto workspace = [this](int worker) {
    auto& w = workspaces_[static_cast<size_t>(worker)];
    if (w == nullptr) w = std::make_unique<Workspace>(*this);
    return w.get();
  };
  if (share_b_) {
    const int64_t count = p_.G * ceil_div(panels_, kPanelsPerPack) * blocks_;
    (*stages)[kPrepare].push_back(
        {count, count / (32 * threads), [this](int, int64_t low, int64_t high) {
           PackingSpace space(0, 1);
           for (int64_t i = low; i < high; ++i) pack_b(i, &space);
         }});
  }
  if (share_a_) {
    const int64_t count = p_.G * row_blocks_ * blocks_;
    (*stages)[kPrepare].push_back(
        {count, count / (32 * threads), [this](int, int64_t low, int64_t high) {
           PackingSpace space(block_tiles_ * kTileRows, 1);
           for (int64_t i = low; i < high; ++i) pack_a(i, &space);
         }});
  }
  const int64_t count = p_.G * splits_ * row_blocks_ * panel_ranges_;
  (*stages)[kCompute].push_back(
      {count, 1, [this, count, workspace](int worker, int64_t i, int64_t) {
         const Task next = task(std::min(i + 1, count - 1));
         run_task(task(i), i + 1 < count ? &next : nullptr, workspace(worker));
#if defined(__x86_64__)
         if (stream_) _mm_sfence();
#endif
       }});
  if (splits_ == 1) return;
  const int64_t rows = p_.G * p_.M;
  (*stages)[kCombine].push_back(
      {rows, rows / (32 * threads), [this, workspace](int worker, int64_t low, int64_t high) {
         combine(low, high, workspace(worker));
       }});
}

// Block `index` of shared A: of g, row blocks and k-blocks.
void Tiles::pack_a(int64_t index, PackingSpace* space) const {
  const int64_t rows = index / blocks_ % row_blocks_;
  const int64_t m = tiles_ * rows / row_blocks_ * kTileRows;
  const int64_t end = std::min(tiles_ * (rows + 1) / row_blocks_ * kTileRows, p_.M);
  pack_a_.pack(index / blocks_ / row_blocks_, m, end - m, index % blocks_, 1, space,
               shared_a_.as<int32_t>() + index * a_words_,
               const_cast<PackedA*>(&shared_packed_[static_cast<size_t>(index)]),
               const_cast<Norms*>(&shared_a_norms_[static_cast<size_t>(index * block_tiles_)]),
               block_tiles_);
}

void Tiles::pack_b(int64_t index, PackingSpace* space) const {
  const int64_t b = index % blocks_;
  index /= blocks_;
  const int64_t packs = ceil_div(panels_, kPanelsPerPack);
  const int64_t g = index / packs, panel = index % packs * kPanelsPerPack;
  const int64_t n = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelsPerPack * kPanelColumns, p_.N - n);
  const Block k = block(b);
  const int64_t norms = (g * panels_ + panel) * blocks_ + b;
  // The last panel may be narrower, and its blocks closer to each other.
  for (int64_t first = 0; first < columns;) {
    const int64_t whole = (columns - first) / kPanelColumns * kPanelColumns;
    const int64_t count = whole > 0 ? whole : columns - first;
    const int64_t p = first / kPanelColumns;
    pack_b_.pack(
        g, n + first, count, k.k, k.size, space, shared_block(g, panel + p, b), shared_panel_words_,
        const_cast<Norms*>(&shared_norms_[static_cast<size_t>(norms + p * blocks_)]), blocks_);
    first += count;
  }
}

void Tiles::run_task(const Task& task, const Task* next, Workspace* w) const {
  const int64_t m = task.tile * kTileRows, rows = task_rows(task);
  c_m_.offsets(m, m + rows, c_g_.offset(task.g), w->row_offsets.data());
  const int64_t first = task.split * p_.blocks_per_split;
  const int64_t end = std::min(first + p_.blocks_per_split, blocks_);
  const int64_t panels_per_pack = share_b_ ? 1 : kPanelsPerPack;
  const int64_t panel_words = PackerB::block_words(kPanelColumns, kBlock);
  for (int64_t group = first; group < end; group += group_) {
    const int64_t count = std::min(group_, end - group);
    const PackedA* packed_a = w->packed_a.data();
    const Norms* a_norms = w->a_norms.data();
    if (share_a_) {
      const int64_t at = (task.g * row_blocks_ + task.row_block) * blocks_ + group;
      packed_a = &shared_packed_[static_cast<size_t>(at)];
      a_norms = &shared_a_norms_[static_cast<size_t>(at * block_tiles_)];
      const int64_t ahead = group + group_ < end ? std::min(group_, end - group - group_) : 0;
      w->next_a.set(shared_a_.as<int32_t>() + (at + group_) * a_words_, ahead * a_words_);
    } else {
      pack_a_.pack(task.g, m, rows, group, count, &w->packing, w->a.as<int32_t>(),
                   w->packed_a.data(), w->a_norms.data(), block_tiles_);
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
        if (!share_b_) {
          pack_b_.pack(task.g, n, columns, block(b).k, block(b).size, &w->packing,
                       w->b.as<int32_t>(), panel_words, b_norms, 1);
          if (b + 1 < end) {
            const Block k = block(b + 1);
            pack_b_.preview(task.g, n, columns, k.k, k.size, &w->next_b);
            w->next_b.spread(tiles * (panel_end - panel));
          }
        }
        for (int64_t p = panel; p < panel_end; ++p) {
          const int64_t shared = (task.g * panels_ + p) * blocks_ + b;
          if (preview_b_)
            preview_shared(task, i + 1 < count ? p : p + 1, i + 1 < count ? b + 1 : group, w);
          run_panel(task, p, b,
                    share_b_ ? shared_block(task.g, p, b)
                             : w->b.as<int32_t>() + (p - panel) * panel_words,
                    share_b_ ? shared_norms_[static_cast<size_t>(shared)] : b_norms[p - panel],
                    packed_a[i], a_norms + i * block_tiles_, w);
        }
      }
    }
  }
  if (splits_ == 1 && !scaling_.is_factor()) scale_rows(task, w);
}

// Previews a packed block of B that is used next.
void Tiles::preview_shared(const Task& task, int64_t panel, int64_t index, Workspace* w) const {
  if (panel >= task.panel_end) return;
  w->next_b.set(shared_block(task.g, panel, index),
                PackerB::block_words(columns(panel), block(index).size));
  w->next_b.spread(task.tile_end - task.tile);
}

// Fetches the lines that the last block of a tile writes.
void Tiles::fetch_outputs(const Task& task, int64_t panel, int64_t tile, const Workspace& w) const {
  const int64_t* at = &w.row_offsets[static_cast<size_t>((tile - task.tile) * kTileRows)];
  for (int64_t r = 0; r < std::min<int64_t>(kTileRows, p_.M - tile * kTileRows); ++r)
    for (int64_t n = 0; n < columns(panel); n += 16)
      __builtin_prefetch(c_ + at[r] + panel * kPanelColumns + n, 1, 3);
}

// All tiles of one panel and one k-block. Sums run on in the workspace, close to the core, and go
// where they belong with the split's last block.
void Tiles::run_panel(const Task& task, int64_t panel, int64_t b, const int32_t* packed_b,
                      const Norms& b_norms, const PackedA& a, const Norms* a_norms,
                      Workspace* w) const {
  const int64_t split_begin = task.split * p_.blocks_per_split;
  const bool first = b == split_begin;
  const bool last = b == std::min(split_begin + p_.blocks_per_split, blocks_) - 1;
  if (last && !contiguous_columns_)
    c_n_.offsets(panel * kPanelColumns, panel * kPanelColumns + columns(panel), 0,
                 w->column_offsets.data());
  const float* in[kTileRows];
  float* out[kTileRows];
  CellArgs cell;
  cell.a_row = a.row_stride;
  cell.a_pair = a.pair_stride;
  cell.b = packed_b;
  cell.columns = static_cast<int32_t>(round_up(columns(panel), kColumnQuantum));
  cell.pairs = static_cast<int32_t>(ceil_div(block(b).size, 2));
  cell.in = in;
  cell.out = out;
  cell.finish = splits_ == 1 && last && scaling_.is_factor();
  cell.stream = false;
  cell.scale = scaling_.factor();
  cell.narrow = static_cast<int32_t>(columns(panel));
  cell.b_quads = nullptr;
  if (columns(panel) <= kMostNarrow && a.pair_stride == 1)
    cell.b_quads = word_quads(packed_b, cell.columns, cell.narrow, cell.pairs, w->b_quads);
  // With several groups every panel of the task has sums of its own.
  const int64_t sums_panel = (panel - task.panel) % std::max<int64_t>(sum_panels_, 1);
  const bool fetch = last && !stream_ && contiguous_columns_ && splits_ == 1;
  for (int64_t tile = task.tile; tile < task.tile_end; ++tile) {
    const int64_t local = tile - task.tile;
    cell.a = a.words + local * kTileRows * a.row_stride;
    cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, p_.M - tile * kTileRows));
    cell.chain = chain_pairs(a_norms[local], b_norms);
    w->next_a.step();
    w->next_b.step();
    if (fetch && tile + 1 < task.tile_end) fetch_outputs(task, panel, tile + 1, *w);
    float* sums = first && last ? nullptr : w->sums_of(sums_panel, local);
    for (int i = 0; i < kTileRows; ++i) in[i] = first ? kZeros : sums + i * kPanelColumns;
    if (!last)
      for (int i = 0; i < kTileRows; ++i) out[i] = sums + i * kPanelColumns;
    if (last)
      finish_tile(task, panel, tile, &cell, out, w);
    else
      kernels_.cell(cell);
  }
}

// The last cell of a tile, with its outputs in place if the microkernel can write there.
void Tiles::finish_tile(const Task& task, int64_t panel, int64_t tile, CellArgs* cell, float** out,
                        Workspace* w) const {
  const int rows = cell->rows;
  const int64_t* offsets = &w->row_offsets[static_cast<size_t>((tile - task.tile) * kTileRows)];
  const int64_t n = panel * kPanelColumns, count = columns(panel);
  if (splits_ > 1) {
    const int64_t row = (task.split * p_.G + task.g) * p_.M + tile * kTileRows;
    for (int i = 0; i < rows; ++i) out[i] = partial_.as<float>() + (row + i) * partial_stride_ + n;
    return kernels_.cell(*cell);
  }
  if (contiguous_columns_ && cell->columns == count) {
    uintptr_t address = 0;
    for (int i = 0; i < rows; ++i) {
      out[i] = c_ + offsets[i] + n;
      address |= reinterpret_cast<uintptr_t>(out[i]);
    }
    cell->stream = stream_ && address % 64 == 0;
    return kernels_.cell(*cell);
  }
  for (int i = 0; i < rows; ++i) out[i] = w->bounce[i];
  kernels_.cell(*cell);
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

// Adds up the splits of rows [low, high) of G x M, in ascending order.
void Tiles::combine(int64_t low, int64_t high, Workspace* w) const {
  const int64_t split_stride = p_.G * p_.M * partial_stride_;
  for (int64_t i = low; i < high; ++i) {
    const int64_t g = i / p_.M, m = i % p_.M;
    float* row = c_ + c_g_.offset(g) + c_m_.offset(m);
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t n = panel * kPanelColumns, count = columns(panel);
      const float* partial = partial_.as<float>() + i * partial_stride_ + n;
      int64_t* at = w->column_offsets.data();
      c_n_.offsets(n, n + count, 0, at);
      float* to = contiguous_columns_ ? row + n : w->bounce[0];
      kernels_.combine(partial, split_stride, splits_, count, scaling_.factor(), to);
      if (!contiguous_columns_)
        for (int64_t j = 0; j < count; ++j) row[at[j]] = to[j];
      if (!scaling_.is_factor()) scaling_.apply(g, m, n, n + count, at, row);
    }
  }
}

}  // namespace

std::unique_ptr<Job> make_tiles(const Part& part, const Operands& operands,
                                const KernelTable& kernels, int threads) {
  return std::make_unique<Tiles>(part, operands, kernels, threads);
}

}  // namespace dfpjax
