#include "contraction/tiled_operand.h"

#include <utility>

#include "contraction/alignment.h"
#include "contraction/packing.h"

namespace dfpjax {

TiledOperand::TiledOperand(const Grid& grid, const int16_t* data, const int32_t* exponents,
                           int64_t base, Patchwork work, const std::vector<Dim>& g,
                           int64_t Dim::* stride, int64_t lanes, int64_t blocks,
                           const WinogradTile& tile, Transform transform, const LaneGroups& groups,
                           const ContractionKernels& kernels)
    : reader_(grid, data, exponents, base, std::move(work), lanes),
      g_(g, stride, nullptr),
      lanes_(lanes),
      blocks_(blocks),
      tile_(tile),
      transform_(transform),
      groups_(groups),
      kernels_(kernels),
      units_(static_cast<size_t>(g_.extent() * blocks * lanes)),
      lost_(units_.size()) {}

void TiledOperand::find_units(int64_t g, int64_t block, PatchSpace* s) {
  const int64_t origin = g_.offset(g), count = size(block);
  reader_.find(origin, block * kBlockOfTiles, count, &s->found);
  for (int64_t lane = 0; lane < lanes_;) {
    const PatchReader::Piece piece = reader_.piece(origin, lane, lanes_, lanes_);
    bool lost = false;
    const int32_t unit = reader_.unit(s->found, 0, count, lane, &lost);
    const auto at = static_cast<size_t>((g * blocks_ + block) * lanes_ + lane);
    std::fill_n(&units_[at], piece.end - lane, unit);
    std::fill_n(&lost_[at], piece.end - lane, lost ? 1 : 0);
    lane = piece.end;
  }
}

void TiledOperand::find_bases(int64_t g, int64_t lane, int64_t end, int32_t* bases,
                              char* lost) const {
  const int64_t count = end - lane;
  std::fill_n(bases, count, kAbsent);
  std::fill_n(lost, count, 0);
  for (int64_t block = 0; block < blocks_; ++block) {
    const auto at = static_cast<size_t>((g * blocks_ + block) * lanes_ + lane);
    for (int64_t i = 0; i < count; ++i) {
      bases[i] = std::max(bases[i], units_[at + static_cast<size_t>(i)]);
      lost[i] |= lost_[at + static_cast<size_t>(i)];
    }
  }
  for (int64_t i = 0; i < count; ++i) bases[i] = bases[i] == kAbsent ? 0 : bases[i];
}

int64_t TiledOperand::groups(int64_t lanes) const { return ceil_div(lanes, groups_.lanes); }

TiledOperand::Packed TiledOperand::room(int64_t lanes) const {
  const int64_t groups = this->groups(lanes), places = groups * tile_.positions();
  Packed packed;
  packed.end = lanes;
  packed.words = Scratch::array<int32_t>({places, position_words()});
  packed.nonzero.resize(static_cast<size_t>(groups), groups_.lanes);
  packed.exponents.resize(static_cast<size_t>(places * groups_.lanes));
  packed.scales = Scratch::array<float>({places, groups_.lanes});
  packed.norms.resize(static_cast<size_t>(places * groups_.norms()));
  packed.bases.resize(static_cast<size_t>(groups * groups_.lanes));
  packed.lost.resize(packed.bases.size());
  return packed;
}

int64_t TiledOperand::room_bytes(int64_t lanes) const {
  return groups(lanes) * tile_.positions() * position_words() * int64_t{sizeof(int32_t)};
}

void TiledOperand::start(int64_t g, int64_t group, int64_t end, Packed* out) const {
  const int64_t from = group * groups_.lanes, to = end * groups_.lanes;
  std::fill_n(&out->bases[static_cast<size_t>(from)], to - from, 0);
  find_bases(g, out->first + from, std::min(out->first + to, out->end),
             &out->bases[static_cast<size_t>(from)], &out->lost[static_cast<size_t>(from)]);
}

void TiledOperand::pack(int64_t g, int64_t block, int64_t group, int64_t end, PatchSpace* s,
                        Packed* out) const {
  const int64_t origin = g_.offset(g), count = size(block), width = groups_.lanes;
  const int positions = tile_.positions();
  reader_.find(origin, block * kBlockOfTiles, count, &s->found);
  const float* const norms = transform_ == Transform::kInput ? kOnes : normalization(tile_);
  for (; group < end; ++group) {
    const int64_t start = out->first + group * width, lanes = std::min(width, out->end - start);
    const int64_t at = group * positions;
    int32_t* const words = out->words.as<int32_t>() + at * position_words();
    int32_t* const exponents = &out->exponents[static_cast<size_t>(at * width)];
    int64_t& nonzero = out->nonzero[static_cast<size_t>(group)];
    if (lanes < nonzero) std::fill_n(words, positions * position_words(), 0);
    if (lanes < width) std::fill_n(exponents, positions * width, kAbsent);
    nonzero = lanes;
    for (int64_t lane = start; lane < start + lanes;) {
      const PatchReader::Piece piece = reader_.piece(origin, lane, start + lanes, width);
      const int64_t to = lane - start;
      const int32_t unit = units_[static_cast<size_t>((g * blocks_ + block) * lanes_ + lane)];
      transform_across(reader_, count, lane, piece.end - lane, unit, {tile_, transform_, norms},
                       kernels_, s, {words + to, position_words(), width, exponents + to, width});
      lane = piece.end;
    }
    for (int p = 0; p < positions; ++p) {
      kernels_.norms_pairs(words + p * position_words(), width, static_cast<int>(lanes),
                           static_cast<int>(ceil_div(count, 2)),
                           static_cast<int>(groups_.lanes_of_norms),
                           &out->norms[static_cast<size_t>((at + p) * groups_.norms())]);
      scales_below(exponents + p * width, &out->bases[static_cast<size_t>(group * width)], width,
                   out->scales.as<float>() + (at + p) * width);
    }
  }
}

}  // namespace dfpjax
