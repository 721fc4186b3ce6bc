// The stages of a part of mode "tiles". The tasks themselves are in tasks.cc.
#include "contraction/tiles.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "contraction/blocking.h"

namespace dfpjax {
namespace {

// Cache budgets, for a second-level cache of 512 KiB or more.
constexpr int64_t kPackedABytes = 256 << 10;   // packed k-blocks of A per pass over the panels
constexpr int64_t kResidentBytes = 512 << 10;  // larger operands are fetched ahead of their use

// With so few tiles of rows, a panel of B is used for less time than it takes to fetch the next one
// at once.
constexpr int64_t kFewTiles = 3;
constexpr int64_t kRangesPerThread = 4;  // each packs A

// Room for packed B if it will be kept, else null.
std::shared_ptr<PackedB> offer_packed(const Part& part, OperandReuse& reuse) {
  if (!reuse.again() || reuse.found()) return nullptr;
  try {
    auto packed = std::make_shared<PackedB>(part);
    if (reuse.offer(packed)) return packed;
  } catch (const std::bad_alloc&) {  // the call may do without it
  }
  return nullptr;
}

}  // namespace

Tiles::Tiles(const Part& part, const Operands& operands, const Chains& chains,
             const ContractionKernels& kernels, int threads, OperandReuse& reuse)
    : p_(part),
      chains_(chains),
      kernels_(kernels),
      c_(operands.c + part.base_c),
      pack_a_(part, operands.a, operands.ea, kernels, !chains.bounded),
      pack_b_(part, operands.b, operands.eb, kernels, !chains.bounded),
      c_g_(part.g, &Dim::stride_c, nullptr),
      c_m_(part.m, &Dim::stride_c, nullptr),
      c_n_(part.n, &Dim::stride_c, nullptr),
      scaling_(part, operands.ea, operands.eb),
      contiguous_columns_(c_n_.run_extent() == part.N),
      blocks_(ceil_div(part.K, kBlock)),
      splits_(ceil_div(blocks_, part.blocks_per_split)),
      tiles_(ceil_div(part.M, kTileRows)),
      panels_(ceil_div(part.N, kPanelColumns)),
      packing_(offer_packed(part, reuse)),
      shared_b_(operands.packed != nullptr ? operands.packed : reuse.prepared<PackedB>()),
      workspaces_(static_cast<size_t>(threads)) {
  const int64_t split_blocks = std::min(p_.blocks_per_split, blocks_);
  // Packed, overlapping rows would be many times larger than the operand.
  const bool can_share_a = pack_a_.source() != Source::kInPlace && !pack_a_.overlapping();
  const Blocking blocking =
      choose_blocking({p_.G * splits_, tiles_, panels_, std::min(split_blocks * kBlock, p_.K),
                       pack_a_.source(), can_share_a, packing_ != nullptr || shared_b_ != nullptr},
                      threads);
  if (blocking.share_b && packing_ == nullptr) packing_ = std::make_shared<PackedB>(part);
  if (packing_ != nullptr) shared_b_ = packing_;
  const bool from_memory = shared_b_ != nullptr && shared_b_->group_bytes() > kResidentBytes;
  few_rows_ = from_memory && p_.in_blocks && tiles_ <= kFewTiles;
  preview_b_ = from_memory && !few_rows_;
  row_blocks_ = few_rows_ ? 1 : blocking.row_blocks;
  panel_ranges_ =
      few_rows_ ? std::min<int64_t>(panels_, kRangesPerThread * threads) : blocking.panel_ranges;
  block_tiles_ = ceil_div(tiles_, row_blocks_);
  a_words_ = pack_a_.block_words(block_tiles_ * kTileRows);
  group_ =
      std::clamp<int64_t>(kPackedABytes / (a_words_ * int64_t{sizeof(int32_t)}), 1, split_blocks);
  partial_stride_ = round_up(p_.N, kColumnQuantum);
  if (splits_ > 1) partial_ = Scratch::array<float>({splits_, p_.G, p_.M, partial_stride_});
  if (splits_ > 1 && p_.in_blocks)
    partial_bases_.resize(static_cast<size_t>(splits_ * p_.G * p_.M * panels_ * kHalves));
  share_a_ = blocking.share_a && !few_rows_;
  if (share_a_) {
    const int64_t count = p_.G * row_blocks_ * blocks_;
    shared_a_ = Scratch::array<int32_t>({count, a_words_});
    shared_packed_.resize(static_cast<size_t>(count * block_tiles_));
    if (p_.in_blocks)
      shared_a_segments_ = Scratch::array<TileSegments>({count, block_tiles_});
    else
      shared_a_norms_.resize(static_cast<size_t>(count * block_tiles_));
  }
  sum_panels_ = split_blocks == 1       ? 0
                : split_blocks > group_ ? ceil_div(panels_, panel_ranges_)
                                        : (shared_b_ != nullptr ? 1 : kPanelsPerPack);
  stream_ = splits_ == 1 && scaling_.is_factor() && contiguous_columns_ &&
            p_.G * p_.M * p_.N * int64_t{sizeof(float)} >= kStreamBytes;
}

Tiles::Workspace::Workspace(const Tiles& t)
    : packing(t.block_tiles_ * kTileRows, t.group_),
      a(Scratch::array<int32_t>({t.share_a_ ? 0 : t.group_, t.a_words_})),
      b(Scratch::array<int32_t>({kPanelsPerPack, PackerB::block_words(kPanelColumns, kBlock)})),
      sums(Scratch::array<float>({t.sum_panels_, t.block_tiles_, kTileRows, kPanelColumns})),
      packed_a(static_cast<size_t>(t.group_ * t.block_tiles_)),
      a_norms(static_cast<size_t>(t.p_.in_blocks ? 0 : t.group_ * t.block_tiles_)),
      a_segments(Scratch::array<TileSegments>({t.p_.in_blocks ? t.group_ : 0, t.block_tiles_})),
      bases(static_cast<size_t>(
          t.p_.in_blocks ? std::max<int64_t>(t.sum_panels_, 1) * t.block_tiles_ : 0)),
      factors(static_cast<size_t>(t.p_.in_blocks ? t.splits_ : 0)),
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
  if (packing_ != nullptr) {
    const int64_t count = packing_->packs();
    (*stages)[kPrepare].push_back(
        {count, count / (32 * threads), [this](int, int64_t low, int64_t high) {
           PackingSpace space(0, 1);
           for (int64_t i = low; i < high; ++i) packing_->pack(pack_b_, i, &space);
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

// Packs block `index` of shared A; the index runs over [g][row block][k-block].
void Tiles::pack_a(int64_t index, PackingSpace* space) {
  const int64_t rows = index / blocks_ % row_blocks_;
  const int64_t m = tiles_ * rows / row_blocks_ * kTileRows;
  const int64_t end = std::min(tiles_ * (rows + 1) / row_blocks_ * kTileRows, p_.M);
  pack_a_.pack(index / blocks_ / row_blocks_, m, end - m, index % blocks_, 1, space,
               shared_a_.as<int32_t>() + index * a_words_, shared_tiles(index * block_tiles_),
               block_tiles_);
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
      if (p_.in_blocks)
        for (int64_t j = 0; j < count; j += kBlocksPanelColumns)
          combine_in_blocks(partial + j, i, panel * kHalves + j / kBlocksPanelColumns,
                            std::min<int64_t>(kBlocksPanelColumns, count - j), to + j, w);
      else
        kernels_.combine(partial, split_stride, splits_, count, nullptr, scaling_.factor(), to);
      if (!contiguous_columns_)
        for (int64_t j = 0; j < count; ++j) row[at[j]] = to[j];
      if (!scaling_.is_factor()) scaling_.apply(g, m, n, n + count, at, row);
    }
  }
}

// Columns of a panel of 32 in row `i` of G x M. The parts have bases of their own; the sum has the
// largest.
void Tiles::combine_in_blocks(const float* partial, int64_t i, int64_t half, int64_t count,
                              float* to, Workspace* w) const {
  const int64_t rows = p_.G * p_.M;
  const auto base_of = [&](int64_t split) {
    return partial_bases_[static_cast<size_t>((split * rows + i) * panels_ * kHalves + half)];
  };
  int32_t base = kUnset;
  for (int64_t split = 0; split < splits_; ++split) base = std::max(base, base_of(split));
  for (int64_t split = 0; split < splits_; ++split)
    w->factors[static_cast<size_t>(split)] = factor_of(base_of(split), base);
  const int32_t exponent = base == kUnset ? 0 : base;
  const bool normal = is_normal(exponent);
  kernels_.combine(partial, rows * partial_stride_, splits_, count, w->factors.data(),
                   normal ? power_of_two(exponent) : 1.0f, to);
  if (!normal)
    for (int64_t j = 0; j < count; ++j) to[j] = scale_once(to[j], exponent);
}

std::unique_ptr<Job> make_tiles(const Part& part, const Operands& operands, const Chains& chains,
                                const ContractionKernels& kernels, int threads,
                                OperandReuse& reuse) {
  if (operands.packed == nullptr && worth_keeping(part)) reuse.look_up();
  return std::make_unique<Tiles>(part, operands, chains, kernels, threads, reuse);
}

}  // namespace dfpjax
