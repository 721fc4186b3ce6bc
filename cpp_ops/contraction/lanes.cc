// Runs a part of mode "lanes". Lanes share no operand elements, so nothing is reused, and a
// vectorized direct loop over the last G dimension suffices.
#include <algorithm>
#include <numeric>

#include "contraction/certificate.h"
#include "contraction/contract.h"
#include "contraction/packing.h"
#include "contraction/scaling.h"
#include "plan/index.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

// The lanes of one task. Its interleaved share of B stays in the second-level cache.
constexpr int64_t kLaneRange = kPanelsPerPack * kPanelColumns;

constexpr int64_t kRows = 256;  // rows whose addresses are computed together

Part without_lanes(Part part) {
  part.G /= part.g.back().extent;
  part.g.pop_back();
  return part;
}

class Lanes : public Job {
 public:
  Lanes(const Part& part, const Operands& operands, const ContractionKernels& kernels, int threads);
  void enlist(std::vector<Stage>* stages) override;

 private:
  // One outer g, one split of k, a range of lanes and a range of rows.
  struct Task {
    int64_t g, split, lane, lanes, m, m_end;
  };
  struct Workspace {
    Workspace()
        : packing(0, 1),
          words(Scratch::array<int32_t>({kBlock / 2, kLaneRange})),
          zeros(kLaneRange),
          points(kBlock),
          rows(kRows),
          row_offsets(kRows) {}
    PackingSpace packing;
    Scratch words;
    std::vector<int16_t> zeros;
    std::vector<Point> points, rows;
    std::vector<int64_t> row_offsets;
    bool has_lowest_pair;  // among the words
  };

  Task task(int64_t index) const;
  void run_task(const Task& task, Workspace* w) const;
  void combine(int64_t row) const;
  void run_rows(const Task& t, const Point& origin, int64_t low, int64_t high, int64_t k,
                bool first, bool last, Workspace* w) const;
  // The partial sums of a split for (g, m), from the first lane on, if there are several splits.
  float* partial(int64_t split, int64_t g, int64_t m) const {
    return partial_.as<float>() + ((split * outer_.G + g) * p_.M + m) * lanes_;
  }
  void scale(int64_t g, int64_t m, int64_t lane, int64_t lanes, float* row) const;
  static int64_t words_stride(int64_t lanes) { return round_up(lanes, kColumnQuantum); }

  const Part& p_;
  const ContractionKernels& kernels_;
  const Part outer_;  // the part without its lane dimension
  const int64_t lanes_;
  const int16_t* const a_;
  float* const c_;
  const Bounds bounds_;
  const PackerB pack_b_;
  const Axis a_g_, a_m_, a_k_, c_g_, c_m_;
  const Scaling scaling_;
  const int64_t splits_, ranges_;
  int64_t rows_, row_blocks_;  // of a task
  Scratch partial_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one for each worker
};

// B as the packer sees it: the lanes of each outer g are columns.
Part lanes_as_columns(const Part& part) {
  Part result = without_lanes(part);
  result.n = {part.g.back()};
  result.N = part.g.back().extent;
  return result;
}

Lanes::Lanes(const Part& part, const Operands& operands, const ContractionKernels& kernels,
             int threads)
    : p_(part),
      kernels_(kernels),
      outer_(without_lanes(part)),
      lanes_(part.g.back().extent),
      a_(operands.a + part.base_a),
      c_(operands.c + part.base_c),
      bounds_(make_bounds(part.windows)),
      pack_b_(lanes_as_columns(part), operands.b, nullptr, kernels, false),
      a_g_(outer_.g, &Dim::stride_a, &part.windows),
      a_m_(part.m, &Dim::stride_a, &part.windows),
      a_k_(part.k, &Dim::stride_a, &part.windows),
      c_g_(outer_.g, &Dim::stride_c, nullptr),
      c_m_(part.m, &Dim::stride_c, nullptr),
      scaling_(lanes_as_columns(part), operands.ea, operands.eb),
      splits_(ceil_div(ceil_div(part.K, kBlock), part.blocks_per_split)),
      ranges_(ceil_div(lanes_, kLaneRange)),
      workspaces_(static_cast<size_t>(threads)) {
  if (splits_ > 1) partial_ = Scratch::array<float>({splits_, p_.G, p_.M});
  // The largest number of rows per task that leaves enough tasks, so B is seldom interleaved.
  row_blocks_ = std::clamp<int64_t>(ceil_div(8 * threads, outer_.G * splits_ * ranges_), 1, p_.M);
  rows_ = ceil_div(p_.M, row_blocks_);
  row_blocks_ = ceil_div(p_.M, rows_);
}

void Lanes::enlist(std::vector<Stage>* stages) {
  const int64_t count = outer_.G * splits_ * ranges_ * row_blocks_;
  const int64_t grain = count / (32 * static_cast<int64_t>(workspaces_.size()));
  (*stages)[kCompute].push_back({count, grain, [this](int worker, int64_t low, int64_t high) {
                                   auto& w = workspaces_[static_cast<size_t>(worker)];
                                   if (w == nullptr) w = std::make_unique<Workspace>();
                                   for (int64_t i = low; i < high; ++i) run_task(task(i), w.get());
                                 }});
  if (splits_ == 1) return;
  (*stages)[kCombine].push_back({outer_.G * p_.M, 16, [this](int, int64_t low, int64_t high) {
                                   for (int64_t i = low; i < high; ++i) combine(i);
                                 }});
}

Lanes::Task Lanes::task(int64_t index) const {
  Task t;
  t.lane = index % ranges_ * kLaneRange;
  t.lanes = std::min(kLaneRange, lanes_ - t.lane);
  index /= ranges_;
  t.m = index % row_blocks_ * rows_;
  t.m_end = std::min(t.m + rows_, p_.M);
  index /= row_blocks_;
  t.split = index % splits_;
  t.g = index / splits_;
  return t;
}

void Lanes::run_task(const Task& t, Workspace* w) const {
  const size_t windows = p_.windows.size();
  Point origin{};
  for (size_t i = 0; i < windows; ++i) {
    origin.coord[i] = static_cast<int32_t>(p_.windows[i].offset);
    origin.offset += p_.windows[i].offset * p_.windows[i].stride_a;
  }
  a_g_.points(t.g, t.g + 1, origin, &origin);

  const int64_t begin = t.split * p_.blocks_per_split * kBlock;
  const int64_t end = std::min(begin + p_.blocks_per_split * kBlock, p_.K);
  for (int64_t k0 = begin; k0 < end; k0 += kBlock) {
    const int64_t k = std::min<int64_t>(kBlock, end - k0);
    pack_b_.pack_words(t.g, t.lane, t.lanes, k0, k, &w->packing, w->words.as<int32_t>());
    w->has_lowest_pair =
        has_lowest_pair(w->words.as<int32_t>(), ceil_div(k, 2) * words_stride(t.lanes));
    a_k_.points(k0, k0 + k, Point{}, w->points.data());
    for (int64_t m = t.m; m < t.m_end; m += kRows)
      run_rows(t, origin, m, std::min(m + kRows, t.m_end), k, k0 == begin, k0 + k == end, w);
  }
}

// Runs rows [low, high) with the k whose points and words are in the workspace.
void Lanes::run_rows(const Task& t, const Point& origin, int64_t low, int64_t high, int64_t k,
                     bool first, bool last, Workspace* w) const {
  const int windows = static_cast<int>(p_.windows.size());
  a_m_.points(low, high, origin, w->rows.data());
  if (splits_ == 1) c_m_.offsets(low, high, c_g_.offset(t.g), w->row_offsets.data());
  for (int64_t m = low; m < high; ++m) {
    const Point& row = w->rows[static_cast<size_t>(m - low)];
    const int16_t* sources[kBlock];
    for (int64_t i = 0; i < k; ++i) {
      const Point& p = w->points[static_cast<size_t>(i)];
      bool exists = true;
      for (int j = 0; j < windows; ++j)  // as unsigned, negative ones are too large
        exists &= static_cast<uint32_t>(row.coord[j] + p.coord[j]) <
                  static_cast<uint32_t>(bounds_.size[j]);
      sources[i] = exists ? a_ + row.offset + p.offset + t.lane : w->zeros.data();
    }
    float* sums =
        splits_ == 1 ? c_ + w->row_offsets[static_cast<size_t>(m - low)] : partial(t.split, t.g, m);
    sums += t.lane;
    const auto kernel = w->has_lowest_pair ? kernels_.lanes_of_any : kernels_.lanes;
    kernel(sources, w->words.as<int32_t>(), words_stride(t.lanes), static_cast<int>(k),
           static_cast<int>(t.lanes), first, sums);
    if (last && splits_ == 1) scale(t.g, m, t.lane, t.lanes, sums);
  }
}

// Scales the totals of (g, m), lanes [lane, lane + lanes), which start at row[0].
void Lanes::scale(int64_t g, int64_t m, int64_t lane, int64_t lanes, float* row) const {
  if (scaling_.is_factor()) {
    kernels_.combine(row, 0, 1, lanes, nullptr, scaling_.factor(), row);
    return;
  }
  constexpr int64_t kStep = 64;
  int64_t at[kStep];
  std::iota(at, at + kStep, 0);
  for (int64_t i = 0; i < lanes; i += kStep)
    scaling_.apply(g, m, lane + i, lane + std::min(i + kStep, lanes), at, row + i);
}

// Adds up the splits of one row of outer G x M, in ascending order.
void Lanes::combine(int64_t index) const {
  const int64_t g = index / p_.M, m = index % p_.M;
  float* row = c_ + c_g_.offset(g) + c_m_.offset(m);
  kernels_.combine(partial(0, g, m), p_.G * p_.M, splits_, lanes_, nullptr, 1.0f, row);
  scale(g, m, 0, lanes_, row);
}

}  // namespace

std::unique_ptr<Job> make_lanes(const Part& part, const Operands& operands,
                                const ContractionKernels& kernels, int threads) {
  return std::make_unique<Lanes>(part, operands, kernels, threads);
}

}  // namespace dfpjax
