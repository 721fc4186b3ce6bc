#include "contraction/packed_b.h"

namespace dfpjax {

PackedB::PackedB(const Part& part)
    : in_blocks_(part.in_blocks),
      groups_(part.G),
      n_(part.N),
      k_(part.K),
      panels_(ceil_div(n_, kPanelColumns)),
      blocks_(ceil_div(k_, kBlock)),
      panel_words_(blocks_ * PackerB::block_words(kPanelColumns, kBlock)),
      group_words_((panels_ - 1) * panel_words_ +
                   blocks_ * PackerB::block_words(columns(panels_ - 1), kBlock)),
      words_(Scratch::array<int32_t>({groups_, group_words_})),
      norms_(in_blocks_ ? 0 : static_cast<size_t>(groups_ * panels_ * blocks_)),
      segments_(Scratch::array<PanelsInBlocks>({in_blocks_ ? groups_ : 0, panels_, blocks_})) {}

size_t PackedB::bytes() const {
  return words_.bytes() + norms_.size() * sizeof(Norms) + segments_.bytes();
}

PanelOfB PackedB::at(int64_t g, int64_t panel, int64_t block) const {
  const int64_t i = index(g, panel, block);
  return {words_at(g, panel, block), in_blocks_ ? nullptr : &norms_[static_cast<size_t>(i)],
          in_blocks_ ? segments_.as<PanelsInBlocks>() + i : nullptr};
}

// The index runs over [g][panels that are packed together][block].
void PackedB::pack(const PackerB& packer, int64_t i, PackingSpace* space) {
  const int64_t block = i % blocks_, packs = ceil_div(panels_, kPanelsPerPack);
  const int64_t g = i / blocks_ / packs, panel = i / blocks_ % packs * kPanelsPerPack;
  const int64_t n = panel * kPanelColumns, k = block * kBlock;
  const int64_t columns = std::min(kPanelsPerPack * kPanelColumns, n_ - n);
  // The last panel may be narrower, and its blocks closer to each other.
  for (int64_t first = 0; first < columns;) {
    const int64_t whole = (columns - first) / kPanelColumns * kPanelColumns;
    const int64_t count = whole > 0 ? whole : columns - first;
    const int64_t p = panel + first / kPanelColumns, at = index(g, p, block);
    packer.pack(g, n + first, count, k, std::min<int64_t>(kBlock, k_ - k), space,
                words_at(g, p, block), panel_words_,
                in_blocks_ ? nullptr : &norms_[static_cast<size_t>(at)],
                in_blocks_ ? segments_.as<PanelsInBlocks>() + at : nullptr, blocks_);
    first += count;
  }
}

}  // namespace dfpjax
