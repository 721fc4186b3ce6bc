#include "contraction/lanes.h"

#include <algorithm>

namespace dfpjax {
namespace {

Part without_lanes(Part part) {
  part.G /= part.g.back().extent;
  part.g.pop_back();
  return part;
}

}  // namespace

LaneJob::LaneJob(const Part& part, const Operands& operands, const ContractionKernels& kernels,
                 int threads)
    : p_(part),
      kernels_(kernels),
      outer_(without_lanes(part)),
      lanes_(part.g.back().extent),
      splits_(ceil_div(ceil_div(part.K, kBlock), part.blocks_per_split)),
      threads_(threads),
      a_(operands.a + part.base_a),
      c_(operands.c + part.base_c),
      bounds_(make_bounds(part.windows)),
      a_g_(outer_.g, &Dim::stride_a, &part.windows),
      a_m_(part.m, &Dim::stride_a, &part.windows),
      a_k_(part.k, &Dim::stride_a, &part.windows),
      c_g_(outer_.g, &Dim::stride_c, nullptr),
      c_m_(part.m, &Dim::stride_c, nullptr),
      ranges_(ceil_div(lanes_, kRange)) {
  if (splits_ > 1) partial_ = Scratch::array<float>({splits_, p_.G, p_.M});
  // The largest number of rows per task that leaves enough tasks, so B is seldom read again.
  row_blocks_ = std::clamp<int64_t>(ceil_div(8 * threads, outer_.G * splits_ * ranges_), 1, p_.M);
  rows_ = ceil_div(p_.M, row_blocks_);
  row_blocks_ = ceil_div(p_.M, rows_);
}

void LaneJob::enlist(std::vector<Stage>* stages) {
  const int64_t count = outer_.G * splits_ * ranges_ * row_blocks_;
  const int64_t grain = count / (32 * threads_);
  (*stages)[kCompute].push_back({count, grain, [this](int worker, int64_t low, int64_t high) {
                                   for (int64_t i = low; i < high; ++i) run_task(task(i), worker);
                                 }});
  if (splits_ == 1) return;
  (*stages)[kCombine].push_back({outer_.G * p_.M, 16, [this](int, int64_t low, int64_t high) {
                                   for (int64_t i = low; i < high; ++i) {
                                     const int64_t g = i / p_.M, m = i % p_.M;
                                     combine(g, m, c_ + c_g_.offset(g) + c_m_.offset(m));
                                   }
                                 }});
}

LaneJob::Task LaneJob::task(int64_t index) const {
  Task t;
  t.lane = index % ranges_ * kRange;
  t.lanes = std::min(kRange, lanes_ - t.lane);
  index /= ranges_;
  t.m = index % row_blocks_ * rows_;
  t.m_end = std::min(t.m + rows_, p_.M);
  index /= row_blocks_;
  t.split = index % splits_;
  t.g = index / splits_;
  return t;
}

void LaneJob::find_origin(const Task& t, Places* places) const {
  a_g_.points(t.g, t.g + 1, make_origin(p_.windows), &places->origin);
}

void LaneJob::find_points(int64_t k0, int64_t k, Places* places) const {
  a_k_.points(k0, k0 + k, Point{}, places->points.data());
}

void LaneJob::find_rows(const Task& t, int64_t low, int64_t high, Places* places) const {
  a_m_.points(low, high, places->origin, places->rows.data());
  if (splits_ == 1) c_m_.offsets(low, high, c_g_.offset(t.g), places->outputs.data());
}

void LaneJob::sources(const Task& t, int64_t i, int64_t k, const Places& places,
                      const int16_t** out) const {
  const Point& row = places.rows[static_cast<size_t>(i)];
  for (int64_t j = 0; j < k; ++j) {
    const Point& p = places.points[static_cast<size_t>(j)];
    out[j] =
        exists(bounds_, row, p.coord) ? a_ + row.offset + p.offset + t.lane : places.zeros.data();
  }
}

float* LaneJob::sums(const Task& t, int64_t m, int64_t i, const Places& places) const {
  float* row =
      splits_ == 1 ? c_ + places.outputs[static_cast<size_t>(i)] : partial(t.split, t.g, m + i);
  return row + t.lane;
}

std::unique_ptr<Job> make_lanes(const Part& part, const Operands& operands,
                                const ContractionKernels& kernels, int threads) {
  return (part.in_blocks ? make_lanes_in_blocks : make_lanes_of_pairs)(part, operands, kernels,
                                                                       threads);
}

}  // namespace dfpjax
