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
  // Of operands in blocks, in memory of the caller, which has size_of(part) and lives longer.
  PackedB(const Part& part, int32_t* words, PanelsInBlocks* segments);
  struct Size {
    int64_t words, segments;
  };
  // A B without dimensions of g is packed once for all of them.
  static Size size_of(const Part& part);

  size_t bytes() const override;
  // Of a group.
  int64_t group_bytes() const { return l_.group_words * int64_t{sizeof(int32_t)}; }
  PanelOfB at(int64_t g, int64_t panel, int64_t block) const;

  // B is packed when this is done for all indices below packs().
  int64_t packs() const { return l_.groups * ceil_div(l_.panels, kPanelsPerPack) * l_.blocks; }
  void pack(const PackerB& packer, int64_t index, PackingSpace* space);

 private:
  struct Layout {
    explicit Layout(const Part& part);
    bool in_blocks;
    int64_t groups, n, k, panels, blocks, panel_words, group_words;
  };

  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, l_.n - panel * kPanelColumns);
  }
  int64_t index(int64_t g, int64_t panel, int64_t block) const {
    return ((l_.groups > 1 ? g : 0) * l_.panels + panel) * l_.blocks + block;
  }
  int32_t* words_at(int64_t g, int64_t panel, int64_t block) const {
    return words_ + (l_.groups > 1 ? g : 0) * l_.group_words + panel * l_.panel_words +
           block * PackerB::block_words(columns(panel), kBlock);
  }

  const Layout l_;
  const Scratch own_words_, own_segments_;  // unless the memory is the caller's
  int32_t* const words_;                    // [g][panel][block]; the last panel may be narrower
  PanelsInBlocks* const segments_;          // likewise, if operands are in blocks
  std::vector<Norms> norms_;                // otherwise
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_PACKED_B_H_
