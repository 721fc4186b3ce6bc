#include "contraction/transformed_kernels.h"

#include "contraction/alignment.h"

namespace dfpjax {
namespace {

constexpr int64_t kRowsAtOnce = 16;  // where channels are contiguous

}  // namespace

TransformedKernels::TransformedKernels(const WinogradPart& part)
    : positions_(part.tile().positions()),
      groups_(part.part().G),
      k_(part.channels().extent),
      n_(part.part().n.front().extent),
      blocks_(ceil_div(k_, kBlock)),
      panels_(ceil_div(n_, kPanelColumns)),
      block_words_(spread(PackerB::block_words(kPanelColumns, std::min<int64_t>(k_, kBlock)))),
      words_(Scratch::array<int32_t>({all_panels(), blocks_, positions_, block_words_})),
      exponents_(Scratch::array<int32_t>({all_panels(), blocks_, positions_, kPanelColumns})),
      units_(Scratch::array<int32_t>({all_panels(), blocks_, kPanelColumns})),
      norms_(static_cast<size_t>(all_panels() * blocks_ * positions_)),
      lost_(static_cast<size_t>(all_panels() * kPanelColumns)) {}

size_t TransformedKernels::bytes() const {
  return words_.bytes() + exponents_.bytes() + units_.bytes() + norms_.size() * sizeof(Norms) +
         lost_.size();
}

void TransformedKernels::find_bases(int64_t g, int64_t panel, int32_t* bases) const {
  std::fill_n(bases, kPanelColumns, kAbsent);
  for (int64_t block = 0; block < blocks_; ++block)
    for (int i = 0; i < kPanelColumns; ++i)
      bases[i] = std::max(bases[i], units(g, panel, block)[i]);
  for (int i = 0; i < kPanelColumns; ++i) bases[i] = bases[i] == kAbsent ? 0 : bases[i];
}

KernelTransform::KernelTransform(const WinogradPart& part, const int16_t* data,
                                 const int32_t* exponents, const ContractionKernels& kernels)
    : result_(std::make_shared<TransformedKernels>(part)),
      to_(*result_),
      kernels_(kernels),
      tile_(part.tile()),
      along_k_(part.part().n.front().stride_b != 1),
      reader_(part.part().grid_b, data, exponents, part.part().base_b, part.patches_of_b(along_k_),
              std::max(to_.k_, to_.n_)),
      g_(part.part().g, &Dim::stride_b, nullptr) {}

void KernelTransform::pack(int64_t i, Space* space) {
  const int64_t g = i / to_.panels_, panel = i % to_.panels_;
  const int64_t columns = to_.columns(panel), width = to_.width(panel);
  for (int64_t block = 0; block < to_.blocks_; ++block) {
    std::fill_n(to_.units(g, panel, block), kPanelColumns, kAbsent);
    // Cells have whole vectors of columns, and those beyond the panel have scales, too.
    if (columns < width)
      std::fill_n(to_.exponents_at(g, panel, block), to_.positions_ * kPanelColumns, kAbsent);
    along_k_ ? pack_along(g, panel, block, space) : pack_across(g, panel, block, space);
    const auto pairs = static_cast<int>(ceil_div(to_.channels(block), 2));
    for (int64_t p = 0; p < to_.positions_; ++p)
      kernels_.norms_pairs(to_.words_at(g, panel, block) + p * to_.block_words_, width,
                           static_cast<int>(columns), pairs, kPanelColumns,
                           &to_.norms_[static_cast<size_t>(to_.index(g, panel, block) + p)]);
  }
}

// Columns are contiguous.
void KernelTransform::pack_across(int64_t g, int64_t panel, int64_t block, Space* s) {
  const int64_t k = to_.channels(block), columns = to_.columns(panel), width = to_.width(panel);
  const int64_t first = panel * kPanelColumns, origin = g_.offset(g);
  int32_t* const words = to_.words_at(g, panel, block);
  reader_.find(origin, block * kBlock, k, &s->found);
  if (columns < width) std::fill_n(words, to_.positions_ * to_.block_words_, 0);
  for (int64_t lane = first; lane < first + columns;) {
    const PatchReader::Piece piece = reader_.piece(origin, lane, first + columns, kPanelColumns);
    const int64_t count = piece.end - lane, column = lane - first;
    bool lost = false;
    const int32_t unit = reader_.unit(s->found, 0, k, lane, &lost);
    transform_across(reader_, k, lane, count, unit,
                     {tile_, Transform::kKernel, normalization(tile_)}, kernels_, s,
                     {words + column, to_.block_words_, width,
                      to_.exponents_at(g, panel, block) + column, kPanelColumns});
    std::fill_n(to_.units(g, panel, block) + column, count, unit);
    if (lost) to_.lose(g, panel, column, count);
    lane = piece.end;
  }
}

// Channels are contiguous: columns are transformed one by one, and their words transposed.
void KernelTransform::pack_along(int64_t g, int64_t panel, int64_t block, Space* s) {
  const int64_t k = to_.channels(block), columns = to_.columns(panel), row = round_up(k, kSegment);
  s->rows.assign(static_cast<size_t>(to_.positions_ * kRowsAtOnce * row + kSlack), 0);
  reader_.find(g_.offset(g), panel * kPanelColumns, columns, &s->found);
  for (int64_t start = 0; start < columns; start += kRowsAtOnce) {
    const int64_t end = std::min(start + kRowsAtOnce, columns);
    if (end < start + kRowsAtOnce) std::fill(s->rows.begin(), s->rows.end(), int16_t{0});
    for (int64_t column = start; column < end; ++column) {
      bool lost = false;
      to_.units(g, panel, block)[column] = transform_along(
          reader_, column, block * kBlock, k, {tile_, Transform::kKernel, normalization(tile_)},
          kernels_, s, s->rows.data() + (column - start) * row, kRowsAtOnce * row,
          to_.exponents_at(g, panel, block) + column, kPanelColumns, &lost);
      if (lost) to_.lose(g, panel, column, 1);
    }
    for (int64_t p = 0; p < to_.positions_; ++p)
      kernels_.transpose(
          s->rows.data() + p * kRowsAtOnce * row, row, static_cast<int>(ceil_div(k, 2)),
          to_.words_at(g, panel, block) + p * to_.block_words_ + start, to_.width(panel));
  }
}

}  // namespace dfpjax
