// Operands of Winograd parts whose tiles lie along K.
#ifndef DFPJAX_CONTRACTION_TILED_OPERAND_H_
#define DFPJAX_CONTRACTION_TILED_OPERAND_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "contraction/winograd.h"

namespace dfpjax {

inline constexpr int64_t kBlockOfTiles = kMostPatches;  // of k

// One operand of a part whose tiles lie along K: its units, and its transformed blocks.
class TiledOperand {
 public:
  TiledOperand(const Grid& grid, const int16_t* data, const int32_t* exponents, int64_t base,
               Patchwork work, const std::vector<Dim>& g, int64_t Dim::* stride, int64_t lanes,
               int64_t blocks, const WinogradTile& tile, Transform transform,
               const ContractionKernels& kernels);

  void find_units(int64_t g, int64_t block, PatchSpace* s);
  // The bases of lanes [lane, end) of g, and whether they are lost.
  void find_bases(int64_t g, int64_t lane, int64_t end, int32_t* bases, char* lost) const;
  // Transforms lanes [lane, end) of a block. Lane i of words k and k + 1 at position p goes to
  // out[p * position_stride + k / 2 * stride + i], its exponent to exponents[p * stride + i].
  void pack(int64_t g, int64_t block, int64_t lane, int64_t end, PatchSpace* s, int32_t* out,
            int64_t position_stride, int64_t stride, int32_t* exponents) const;

  int64_t size(int64_t block) const {
    return std::min(kBlockOfTiles, reader_.points() - block * kBlockOfTiles);
  }

 private:
  const PatchReader reader_;
  const Axis g_;
  const int64_t lanes_, blocks_;
  const WinogradTile tile_;
  const Transform transform_;
  const ContractionKernels& kernels_;
  std::vector<int32_t> units_;  // [g][block][lane]
  std::vector<char> lost_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_TILED_OPERAND_H_
