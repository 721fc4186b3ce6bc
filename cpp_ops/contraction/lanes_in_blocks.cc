// Lanes of operands in blocks: each product is scaled before it is added.
#include <algorithm>
#include <limits>

#include "contraction/lane_scales.h"
#include "contraction/lanes.h"
#include "contraction/running.h"
#include "contraction/scaling.h"

namespace dfpjax {
namespace {

class LanesInBlocks : public LaneJob {
 public:
  LanesInBlocks(const Part& part, const Operands& operands, const ContractionKernels& kernels,
                int threads)
      : LaneJob(part, operands, kernels, threads),
        b_(operands.b + part.base_b),
        b_g_(outer_.g, &Dim::stride_b, nullptr),
        b_k_(part.k, &Dim::stride_b, nullptr),
        scales_(part, outer_, kRange, operands, kernels, splits_),
        workspaces_(static_cast<size_t>(threads)) {}

 private:
  struct Workspace {
    Places places;
    LaneScales::Space scales;
    const int16_t* b[kBlock];
  };

  void run_task(const Task& task, int worker) override;
  void run_rows(const Task& t, const LaneScales::Block& block, int64_t low, int64_t high,
                bool first, bool last, Workspace* w);
  void combine(int64_t g, int64_t m, float* row) const override;
  // Multiplies `lanes` totals by 2^base.
  void scale(int32_t base, int64_t lanes, float* row) const;

  const int16_t* const b_;
  const Axis b_g_, b_k_;
  LaneScales scales_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one for each worker
};

void LanesInBlocks::run_task(const Task& t, int worker) {
  auto& w = workspaces_[static_cast<size_t>(worker)];
  if (w == nullptr) w = std::make_unique<Workspace>();
  for_blocks(t, &w->places, [&](int64_t k0, int64_t k, bool first, bool last) {
    int64_t offsets[kBlock];
    b_k_.offsets(k0, k0 + k, b_g_.offset(t.g), offsets);
    for (int64_t i = 0; i < k; ++i) w->b[i] = b_ + offsets[i] + t.lane;
    const LaneScales::Block block{t.g, t.split, t.lane, k0, static_cast<int>(k)};
    scales_.start(block, &w->scales);
    const int64_t rows = scales_.rows_at_once(block, kRows);
    for (int64_t m = t.m; m < t.m_end; m += rows)
      run_rows(t, block, m, std::min(m + rows, t.m_end), first, last, w.get());
  });
}

void LanesInBlocks::run_rows(const Task& t, const LaneScales::Block& block, int64_t low,
                             int64_t high, bool first, bool last, Workspace* w) {
  find_rows(t, low, high, &w->places);
  scales_.scale(block, low, static_cast<int>(high - low), &w->scales);
  const bool finish = last && splits_ == 1;
  const int16_t* a[kBlock];
  for (int64_t i = 0; i < high - low; ++i) {
    sources(t, i, block.k, w->places, a);
    float* const row = sums(t, low, i, w->places);
    for (size_t p = scales_.first_piece(t.lane); p < scales_.end_piece(t.lane); ++p) {
      const LaneScales::Piece& piece = scales_.pieces()[p];
      const auto lane = static_cast<int>(piece.lane - t.lane);
      const auto end = lane + static_cast<int>(piece.lanes);
      const LaneScales::Row scaled = scales_.row(block, static_cast<int>(i), p, w->scales);
      const int32_t base = scales_.base(t.split, t.g, low + i, p);
      const float after = finish && is_normal(base) ? power_of_two(base) : 1.0f;
      kernels_.scaled_lanes({a, w->b, scaled.scales, scaled.step, block.k, lane, end, first,
                             scaled.before, after, row});
      if (scaled.lost)
        std::fill_n(row + lane, piece.lanes, std::numeric_limits<float>::quiet_NaN());
      if (finish && !is_normal(base)) scale(base, piece.lanes, row + lane);
    }
  }
}

void LanesInBlocks::scale(int32_t base, int64_t lanes, float* row) const {
  for (int64_t i = 0; i < lanes; ++i) row[i] = scale_once(row[i], base == kUnset ? 0 : base);
}

void LanesInBlocks::combine(int64_t g, int64_t m, float* row) const {
  std::vector<float> factors(static_cast<size_t>(splits_));
  for (size_t p = 0; p < scales_.pieces().size(); ++p) {
    const LaneScales::Piece& piece = scales_.pieces()[p];
    int32_t highest = kUnset;
    for (int64_t s = 0; s < splits_; ++s) highest = std::max(highest, scales_.base(s, g, m, p));
    for (int64_t s = 0; s < splits_; ++s)
      factors[static_cast<size_t>(s)] = factor_of(scales_.base(s, g, m, p), highest);
    kernels_.combine(partial(0, g, m) + piece.lane, partial_stride(), splits_, piece.lanes,
                     factors.data(), 1.0f, row + piece.lane);
    scale(highest, piece.lanes, row + piece.lane);
  }
}

}  // namespace

std::unique_ptr<Job> make_lanes_in_blocks(const Part& part, const Operands& operands,
                                          const ContractionKernels& kernels, int threads) {
  return std::make_unique<LanesInBlocks>(part, operands, kernels, threads);
}

}  // namespace dfpjax
