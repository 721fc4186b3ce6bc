// Operands of Winograd parts whose tiles lie along K.
#ifndef DFPJAX_CONTRACTION_TILED_OPERAND_H_
#define DFPJAX_CONTRACTION_TILED_OPERAND_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {

inline constexpr int64_t kBlockOfTiles = kMostPatches;  // of k

// How lanes (rows or columns) lie in memory: in groups, parts of which share norms.
struct LaneGroups {
  int64_t lanes, lanes_of_norms;
  int64_t norms() const { return lanes / lanes_of_norms; }
};

// One operand of a part whose tiles lie along K: its units, and its transformed blocks.
class TiledOperand {
 public:
  TiledOperand(const Grid& grid, const int16_t* data, const int32_t* exponents, int64_t base,
               Patchwork work, const std::vector<Dim>& g, int64_t Dim::* stride, int64_t lanes,
               int64_t blocks, const WinogradTile& tile, Transform transform,
               const LaneGroups& groups, const ContractionKernels& kernels);

  void find_units(int64_t g, int64_t block, PatchSpace* s);
  // The bases of lanes [lane, end) of g, and whether they are lost.
  void find_bases(int64_t g, int64_t lane, int64_t end, int32_t* bases, char* lost) const;

  // Some lanes of a block, transformed.
  struct Packed {
    int64_t first = 0, end = 0;      // lanes
    Scratch words;                   // [group][position][pair of tiles][lane of the group]
    std::vector<int64_t> nonzero;    // [group]: lanes that may have words other than zero
    std::vector<int32_t> exponents;  // [group][position][lane of the group]
    Scratch scales;                  // likewise
    std::vector<Norms> norms;        // [group][position][part of the group]
    std::vector<int32_t> bases;      // [lane]
    std::vector<char> lost;
  };
  Packed room(int64_t lanes) const;         // for lanes [0, lanes)
  int64_t room_bytes(int64_t lanes) const;  // of the words
  int64_t groups(int64_t lanes) const;
  // Finds the bases of groups [group, end) of the lanes of g, and whether they are lost.
  void start(int64_t g, int64_t group, int64_t end, Packed* out) const;
  // Transforms these groups of a block.
  void pack(int64_t g, int64_t block, int64_t group, int64_t end, PatchSpace* s, Packed* out) const;

  // What a cell needs of the lanes from `lane` on.
  struct Cell {
    const int32_t* words;
    const float* scales;
    const Norms* norms;
  };
  Cell cell(const Packed& packed, int64_t position, int64_t lane) const {
    const int64_t group = (lane - packed.first) / groups_.lanes;
    const int64_t in_group = (lane - packed.first) % groups_.lanes;
    const int64_t at = group * tile_.positions() + position;
    return {
        packed.words.as<int32_t>() + at * position_words() + in_group,
        packed.scales.as<float>() + at * groups_.lanes + in_group,
        &packed
             .norms[static_cast<size_t>(at * groups_.norms() + in_group / groups_.lanes_of_norms)]};
  }

  int64_t size(int64_t block) const {
    return std::min(kBlockOfTiles, reader_.points() - block * kBlockOfTiles);
  }

 private:
  // Of a position in a group.
  int64_t position_words() const { return spread(kBlockOfTiles / 2 * groups_.lanes); }

  const PatchReader reader_;
  const Axis g_;
  const int64_t lanes_, blocks_;
  const WinogradTile tile_;
  const Transform transform_;
  const LaneGroups groups_;
  const ContractionKernels& kernels_;
  std::vector<int32_t> units_;  // [g][block][lane]
  std::vector<char> lost_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_TILED_OPERAND_H_
