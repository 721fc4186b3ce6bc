#include "contraction/transformed_kernels.h"

#include "contraction/alignment.h"

namespace dfpjax {
namespace {

constexpr int64_t kRowsAtOnce = 16;  // where channels are contiguous

}  // namespace

TransformedKernels::TransformedKernels(const WinogradPart& part, const int16_t* data,
                                       const int32_t* exponents, const ContractionKernels& kernels)
    : kernels_(kernels),
      tile_(part.tile()),
      positions_(tile_.positions()),
      k_(part.channels().extent),
      n_(part.part().n.front().extent),
      blocks_(ceil_div(k_, kBlock)),
      panels_(ceil_div(n_, kPanelColumns)),
      block_words_(spread(PackerB::block_words(kPanelColumns, std::min<int64_t>(k_, kBlock)))),
      along_k_(part.part().n.front().stride_b != 1),
      reader_(part.part().grid_b, data, exponents, part.part().base_b, part.patches_of_b(along_k_),
              std::max(k_, n_)),
      g_(part.part().g, &Dim::stride_b, nullptr),
      words_(Scratch::array<int32_t>({all_panels(), blocks_, positions_, block_words_})),
      exponents_(Scratch::array<int32_t>({all_panels(), blocks_, positions_, kPanelColumns})),
      units_(Scratch::array<int32_t>({all_panels(), blocks_, kPanelColumns})),
      norms_(static_cast<size_t>(all_panels() * blocks_ * positions_)),
      lost_(static_cast<size_t>(all_panels() * kPanelColumns)) {}

void TransformedKernels::pack(int64_t i, Space* space) {
  const int64_t g = i / panels_, panel = i % panels_;
  for (int64_t block = 0; block < blocks_; ++block) {
    std::fill_n(units(g, panel, block), kPanelColumns, kAbsent);
    // Cells have whole vectors of columns, and those beyond the panel have scales, too.
    if (columns(panel) < width(panel))
      std::fill_n(exponents_.as<int32_t>() + index(g, panel, block) * kPanelColumns,
                  positions_ * kPanelColumns, kAbsent);
    along_k_ ? pack_along(g, panel, block, space) : pack_across(g, panel, block, space);
    const auto pairs = static_cast<int>(ceil_div(channels(block), 2));
    for (int64_t p = 0; p < positions_; ++p)
      kernels_.norms_pairs(words_at(g, panel, block) + p * block_words_, width(panel),
                           static_cast<int>(columns(panel)), pairs, kPanelColumns,
                           &norms_[static_cast<size_t>(index(g, panel, block) + p)]);
  }
}

// Columns are contiguous.
void TransformedKernels::pack_across(int64_t g, int64_t panel, int64_t block, Space* s) {
  const int64_t k = channels(block), first = panel * kPanelColumns, origin = g_.offset(g);
  const int64_t at = index(g, panel, block) / positions_;
  reader_.find(origin, block * kBlock, k, &s->found);
  s->from.resize(static_cast<size_t>(k * reader_.elements()));
  s->scales.resize(s->from.size());
  if (columns(panel) < width(panel))
    std::fill_n(words_at(g, panel, block), positions_ * block_words_, 0);
  for (int64_t lane = first; lane < first + columns(panel);) {
    const PatchReader::Piece piece =
        reader_.piece(origin, lane, first + columns(panel), kPanelColumns);
    const int64_t count = piece.end - lane, column = lane - first;
    bool lost = false;
    const int32_t unit = reader_.unit(s->found, 0, k, lane, &lost);
    reader_.scale(s->found, 0, k, lane, unit, s->from.data(), s->scales.data());
    const Patches patches{tile_,
                          Transform::kKernel,
                          s->from.data(),
                          s->scales.data(),
                          static_cast<int>(k),
                          static_cast<int>(count)};
    int32_t* const exponents = exponents_.as<int32_t>() + at * positions_ * kPanelColumns + column;
    kernels_.pack_patches(patches, normalization(tile_), s->values.as<float>(),
                          words_at(g, panel, block) + column, block_words_, width(panel), exponents,
                          kPanelColumns);
    add_unit(unit, static_cast<int>(positions_), count, kPanelColumns, exponents);
    for (int64_t i = 0; i < count; ++i) {
      units(g, panel, block)[column + i] = unit;
      if (lost) lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns + column + i)] = 1;
    }
    lane = piece.end;
  }
}

// Channels are contiguous: columns are transformed one by one, and their words transposed.
void TransformedKernels::pack_along(int64_t g, int64_t panel, int64_t block, Space* s) {
  const int64_t k = channels(block), first = panel * kPanelColumns, origin = g_.offset(g);
  const int64_t at = index(g, panel, block) / positions_, row = round_up(k, kSegment);
  s->rows.assign(static_cast<size_t>(positions_ * kRowsAtOnce * row + kSlack), 0);
  reader_.find(origin, first, columns(panel), &s->found);
  for (int64_t start = 0; start < columns(panel); start += kRowsAtOnce) {
    const int64_t end = std::min(start + kRowsAtOnce, columns(panel));
    if (end < start + kRowsAtOnce) std::fill(s->rows.begin(), s->rows.end(), int16_t{0});
    for (int64_t column = start; column < end; ++column) {
      bool lost = false;
      units(g, panel, block)[column] = transform_along(
          reader_, column, block * kBlock, k, {tile_, Transform::kKernel, normalization(tile_)},
          kernels_, s, s->rows.data() + (column - start) * row, kRowsAtOnce * row,
          exponents_.as<int32_t>() + at * positions_ * kPanelColumns + column, kPanelColumns,
          &lost);
      if (lost) lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns + column)] = 1;
    }
    for (int64_t p = 0; p < positions_; ++p)
      kernels_.transpose(s->rows.data() + p * kRowsAtOnce * row, row,
                         static_cast<int>(ceil_div(k, 2)),
                         words_at(g, panel, block) + p * block_words_ + start, width(panel));
  }
}

void TransformedKernels::find_bases(int64_t g, int64_t panel, int32_t* bases) const {
  std::fill_n(bases, kPanelColumns, kAbsent);
  for (int64_t block = 0; block < blocks_; ++block)
    for (int i = 0; i < kPanelColumns; ++i)
      bases[i] = std::max(bases[i], units(g, panel, block)[i]);
  for (int i = 0; i < kPanelColumns; ++i) bases[i] = bases[i] == kAbsent ? 0 : bases[i];
}

}  // namespace dfpjax
