#include "contraction/packed_b.h"

#include <algorithm>

namespace dfpjax {

PackedB::Layout::Layout(const Part& part)
    : in_blocks(part.in_blocks),
      groups(std::any_of(part.g.begin(), part.g.end(), [](const Dim& d) { return d.stride_b != 0; })
                 ? part.G
                 : 1),
      n(part.N),
      k(part.K),
      panels(ceil_div(n, kPanelColumns)),
      blocks(ceil_div(k, kBlock)),
      panel_words(blocks * PackerB::block_words(kPanelColumns, kBlock)),
      group_words((panels - 1) * panel_words +
                  blocks * PackerB::block_words(n - (panels - 1) * kPanelColumns, kBlock)) {}

PackedB::PackedB(const Part& part)
    : l_(part),
      own_words_(Scratch::array<int32_t>({l_.groups, l_.group_words})),
      own_segments_(
          Scratch::array<PanelsInBlocks>({l_.in_blocks ? l_.groups : 0, l_.panels, l_.blocks})),
      words_(own_words_.as<int32_t>()),
      segments_(own_segments_.as<PanelsInBlocks>()),
      norms_(l_.in_blocks ? 0 : static_cast<size_t>(l_.groups * l_.panels * l_.blocks)) {}

PackedB::PackedB(const Part& part, int32_t* words, PanelsInBlocks* segments)
    : l_(part), words_(words), segments_(segments) {}

PackedB::Size PackedB::size_of(const Part& part) {
  const Layout l(part);
  return {l.groups * l.group_words, l.groups * l.panels * l.blocks};
}

size_t PackedB::bytes() const {
  return own_words_.bytes() + norms_.size() * sizeof(Norms) + own_segments_.bytes();
}

PanelOfB PackedB::at(int64_t g, int64_t panel, int64_t block) const {
  const int64_t i = index(g, panel, block);
  return {words_at(g, panel, block), l_.in_blocks ? nullptr : &norms_[static_cast<size_t>(i)],
          l_.in_blocks ? segments_ + i : nullptr};
}

// The index runs over [g][panels that are packed together][block].
void PackedB::pack(const PackerB& packer, int64_t i, PackingSpace* space) {
  const int64_t block = i % l_.blocks, packs = ceil_div(l_.panels, kPanelsPerPack);
  const int64_t g = i / l_.blocks / packs, panel = i / l_.blocks % packs * kPanelsPerPack;
  const int64_t n = panel * kPanelColumns, k = block * kBlock;
  const int64_t columns = std::min(kPanelsPerPack * kPanelColumns, l_.n - n);
  // The last panel may be narrower, and its blocks closer to each other.
  for (int64_t first = 0; first < columns;) {
    const int64_t whole = (columns - first) / kPanelColumns * kPanelColumns;
    const int64_t count = whole > 0 ? whole : columns - first;
    const int64_t p = panel + first / kPanelColumns, at = index(g, p, block);
    packer.pack(g, n + first, count, k, std::min<int64_t>(kBlock, l_.k - k), space,
                words_at(g, p, block), l_.panel_words,
                l_.in_blocks ? nullptr : &norms_[static_cast<size_t>(at)],
                l_.in_blocks ? segments_ + at : nullptr, l_.blocks);
    first += count;
  }
}

}  // namespace dfpjax
