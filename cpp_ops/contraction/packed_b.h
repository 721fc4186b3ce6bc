// B of a part of mode "tiles", packed once for all tasks.
#ifndef DFPJAX_CONTRACTION_PACKED_B_H_
#define DFPJAX_CONTRACTION_PACKED_B_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "contraction/kept_operand.h"
#include "contraction/packing.h"
#include "runtime/scratch.h"

namespace dfpjax {

class PackedB : public PreparedOperand {
 public:
  explicit PackedB(const Part& part);
  size_t bytes() const override;
  // Of a group.
  int64_t group_bytes() const { return group_words_ * int64_t{sizeof(int32_t)}; }
  PanelOfB at(int64_t g, int64_t panel, int64_t block) const;

  // B is packed when this is done for all indices below packs().
  int64_t packs() const { return groups_ * ceil_div(panels_, kPanelsPerPack) * blocks_; }
  void pack(const PackerB& packer, int64_t index, PackingSpace* space);

 private:
  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, n_ - panel * kPanelColumns);
  }
  int64_t index(int64_t g, int64_t panel, int64_t block) const {
    return (g * panels_ + panel) * blocks_ + block;
  }
  int32_t* words_at(int64_t g, int64_t panel, int64_t block) const {
    return words_.as<int32_t>() + g * group_words_ + panel * panel_words_ +
           block * PackerB::block_words(columns(panel), kBlock);
  }

  const bool in_blocks_;
  const int64_t groups_, n_, k_, panels_, blocks_, panel_words_, group_words_;
  const Scratch words_;       // [g][panel][block]; the last panel may be narrower
  std::vector<Norms> norms_;  // likewise, unless operands are in blocks
  const Scratch segments_;    // PanelsInBlocks, if they are
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_PACKED_B_H_
