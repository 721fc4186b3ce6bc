// A part of mode "tiles". Stage 1 packs what several tasks read, stage 2 computes, and stage 3 adds
// up the splits. A task is a block of row tiles times a range of column panels times one split of
// k. The cut into tasks depends on the machine; the bits of the result do not.
#ifndef DFPJAX_CONTRACTION_TILES_H_
#define DFPJAX_CONTRACTION_TILES_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kept_operand.h"
#include "contraction/packed_b.h"
#include "contraction/packing.h"
#include "contraction/running.h"
#include "contraction/scaling.h"
#include "plan/index.h"
#include "runtime/scratch.h"

namespace dfpjax {

class Tiles : public Job {
 public:
  Tiles(const Part& part, const Operands& operands, const Chains& chains,
        const ContractionKernels& kernels, int threads, OperandReuse& reuse);
  void enlist(std::vector<Stage>* stages) override;

 private:
  // The bases of a tile's running sums, for each panel of 32 columns and row.
  struct TileBases {
    alignas(32) int32_t of[kHalves][kSegmentRows];
  };
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
    std::vector<Norms> a_norms;    // empty if operands are in blocks
    Scratch a_segments;            // TileSegments, if they are
    std::vector<TileBases> bases;  // of running sums; likewise
    std::vector<float> factors;    // of the splits of a row; likewise
    std::vector<int64_t> row_offsets, column_offsets;
    alignas(64) int32_t b_quads[kMostNarrow * kBlock / 2];
    alignas(64) float bounce[kTileRows][kPanelColumns];
    alignas(64) float cell[kTileRows * kPanelColumns];

    // Running sums of a panel and tile, both counted from the first of the task.
    float* sums_of(int64_t panel, int64_t tile) const {
      return sums.as<float>() + (panel * tiles + tile) * kTileRows * kPanelColumns;
    }
    TileBases* bases_of(int64_t panel, int64_t tile) {
      return &bases[static_cast<size_t>(panel * tiles + tile)];
    }
    int64_t tiles;                        // in a panel of sums
    int64_t saturated = 0;                // chains in the task
    int64_t exact = 0;                    // chains of 2 that were exactly 2^31
    int64_t lengths[kChainLengths] = {};  // multiply-adds of the task, if counted
  };
  struct Block {
    int64_t k, size;
  };
  enum class Lowest { kUnknown, kNone, kSome };  // whether a block has a kLowestPair

  // What a cell of operands in blocks has besides CellArgs.
  struct CellInBlocks {
    const TileSegments* a;
    const PanelsInBlocks* b;
    SegmentChains chains;
    TileBases* bases;
    float* running;  // as in BlockCellArgs
    bool last;       // of the blocks of k in a split
  };

  Task task(int64_t index) const;
  void pack_a(int64_t index, PackingSpace* space);
  void run_task(const Task& task, const Task* next, Workspace* w);
  void run_panel(const Task& task, int64_t panel, int64_t block, const PanelOfB& b,
                 const TilesOfA& a, Workspace* w);
  void run_cell(const CellArgs& cell, const CellInBlocks* blocks) const;
  void choose_chains(const TileSegments& a, const PanelsInBlocks& b, Lowest* b_has_lowest_pair,
                     CellArgs* cell, SegmentChains* chains, Workspace* w) const;
  void count_chains(const CellArgs& cell, const SegmentChains& chains, int64_t size,
                    Workspace* w) const;
  void choose_chain(const Norms& row, const Norms& column, Lowest* b_has_lowest_pair,
                    CellArgs* cell, Workspace* w) const;
  bool may_meet(const CellArgs& cell, Lowest* b_has_lowest_pair) const;
  void report_counts(const Task& task, Workspace* w) const;
  void preview_shared(const Task& task, int64_t panel, int64_t block, Workspace* w) const;
  void fetch_outputs(const Task& task, int64_t panel, int64_t tile, const Workspace& w) const;
  void finish_tile(const Task& task, int64_t panel, int64_t tile, CellArgs* cell,
                   const CellInBlocks* blocks, float** out, Workspace* w);
  void scale_rows(const Task& task, Workspace* w) const;
  void combine(int64_t low, int64_t high, Workspace* w) const;
  void combine_in_blocks(const float* partial, int64_t row, int64_t half, int64_t count, float* to,
                         Workspace* w) const;

  int64_t task_rows(const Task& task) const {
    return std::min(task.tile_end * kTileRows, p_.M) - task.tile * kTileRows;
  }
  Block block(int64_t index) const {
    return {index * kBlock, std::min<int64_t>(kBlock, p_.K - index * kBlock)};
  }
  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, p_.N - panel * kPanelColumns);
  }
  TilesOfA shared_tiles(int64_t index) {
    const TilesOfA all{shared_packed_.data(), p_.in_blocks ? nullptr : shared_a_norms_.data(),
                       p_.in_blocks ? shared_a_segments_.as<TileSegments>() : nullptr};
    return all.at(index);
  }

  const Part& p_;
  const Chains chains_;
  const ContractionKernels& kernels_;
  float* const c_;
  const PackerA pack_a_;
  const PackerB pack_b_;
  const Axis c_g_, c_m_, c_n_;
  const Scaling scaling_;
  const bool contiguous_columns_;
  const int64_t blocks_, splits_, tiles_, panels_;

  int64_t row_blocks_, panel_ranges_;
  int64_t block_tiles_;  // the most tiles in a row block
  int64_t group_;        // k-blocks of A packed at a time
  int64_t sum_panels_;   // panels of a task that have running sums at the same time
  bool stream_;

  int64_t a_words_;  // words of one k-block of A, for a row block

  bool share_a_;
  Scratch shared_a_;
  std::vector<PackedA> shared_packed_;
  std::vector<Norms> shared_a_norms_;  // unless operands are in blocks
  Scratch shared_a_segments_;          // TileSegments, if they are

  std::shared_ptr<PackedB> packing_;         // null unless the call packs B for all tasks
  std::shared_ptr<const PackedB> shared_b_;  // likewise, but set also if it is reused
  bool preview_b_ = false;
  bool few_rows_ = false;  // so few that packed B streams through the microkernel

  int64_t partial_stride_;  // of one row of partial sums
  Scratch partial_;
  std::vector<int32_t> partial_bases_;  // [split][G][M][panels][kHalves], for operands in blocks

  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one for each worker
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_TILES_H_
