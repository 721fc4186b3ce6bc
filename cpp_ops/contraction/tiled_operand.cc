#include "contraction/tiled_operand.h"

#include <utility>

#include "contraction/alignment.h"

namespace dfpjax {
namespace {

constexpr int64_t kMostLanes = kPanelColumns;  // transformed together

}  // namespace

TiledOperand::TiledOperand(const Grid& grid, const int16_t* data, const int32_t* exponents,
                           int64_t base, Patchwork work, const std::vector<Dim>& g,
                           int64_t Dim::* stride, int64_t lanes, int64_t blocks,
                           const WinogradTile& tile, Transform transform,
                           const ContractionKernels& kernels)
    : reader_(grid, data, exponents, base, std::move(work), lanes),
      g_(g, stride, nullptr),
      lanes_(lanes),
      blocks_(blocks),
      tile_(tile),
      transform_(transform),
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

void TiledOperand::pack(int64_t g, int64_t block, int64_t first, int64_t end, PatchSpace* s,
                        int32_t* out, int64_t position_stride, int64_t stride,
                        int32_t* exponents) const {
  const int64_t origin = g_.offset(g), count = size(block);
  reader_.find(origin, block * kBlockOfTiles, count, &s->found);
  s->from.resize(s->found.from.size());
  s->scales.resize(s->found.from.size());
  const bool of_b = transform_ != Transform::kInput;
  for (int64_t lane = first; lane < end;) {
    const PatchReader::Piece piece = reader_.piece(origin, lane, end, kMostLanes);
    const int64_t lanes = piece.end - lane, to = lane - first;
    const int32_t unit = units_[static_cast<size_t>((g * blocks_ + block) * lanes_ + lane)];
    reader_.scale(s->found, 0, count, lane, unit, s->from.data(), s->scales.data());
    const Patches patches{tile_,
                          transform_,
                          s->from.data(),
                          s->scales.data(),
                          static_cast<int>(count),
                          static_cast<int>(lanes)};
    kernels_.pack_patches(patches, of_b ? normalization(tile_) : kOnes, s->values.as<float>(),
                          out + to, position_stride, stride, exponents + to, stride);
    add_unit(unit, tile_.positions(), lanes, stride, exponents + to);
    lane = piece.end;
  }
}

}  // namespace dfpjax
