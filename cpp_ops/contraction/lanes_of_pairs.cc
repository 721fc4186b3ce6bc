// Lanes of operands that are not in blocks: pairs of k are multiplied and added exactly.
#include <algorithm>
#include <numeric>

#include "contraction/certificate.h"
#include "contraction/lanes.h"
#include "contraction/scaling.h"

namespace dfpjax {
namespace {

class LanesOfPairs : public LaneJob {
 public:
  LanesOfPairs(const Part& part, const Operands& operands, const ContractionKernels& kernels,
               int threads);

 private:
  struct Workspace {
    Workspace() : packing(0, 1), words(Scratch::array<int32_t>({kBlock / 2, kRange})) {}
    Places places;
    PackingSpace packing;
    Scratch words;
    bool has_lowest_pair;  // among the words
  };

  void run_task(const Task& task, int worker) override;
  void run_rows(const Task& t, int64_t low, int64_t high, int64_t k, bool first, bool last,
                Workspace* w) const;
  void combine(int64_t g, int64_t m, float* row) const override;
  void scale(int64_t g, int64_t m, int64_t lane, int64_t lanes, float* row) const;
  static int64_t words_stride(int64_t lanes) { return round_up(lanes, kColumnQuantum); }

  const PackerB pack_b_;
  const Scaling scaling_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one for each worker
};

// B as the packer sees it: the lanes of each outer g are columns.
Part with_columns(Part outer, const Dim& lanes) {
  outer.n = {lanes};
  outer.N = lanes.extent;
  return outer;
}

LanesOfPairs::LanesOfPairs(const Part& part, const Operands& operands,
                           const ContractionKernels& kernels, int threads)
    : LaneJob(part, operands, kernels, threads),
      pack_b_(with_columns(outer_, part.g.back()), operands.b, nullptr, kernels, false),
      scaling_(with_columns(outer_, part.g.back()), operands.ea, operands.eb),
      workspaces_(static_cast<size_t>(threads)) {}

void LanesOfPairs::run_task(const Task& t, int worker) {
  auto& w = workspaces_[static_cast<size_t>(worker)];
  if (w == nullptr) w = std::make_unique<Workspace>();
  for_blocks(t, &w->places, [&](int64_t k0, int64_t k, bool first, bool last) {
    pack_b_.pack_words(t.g, t.lane, t.lanes, k0, k, &w->packing, w->words.as<int32_t>());
    w->has_lowest_pair =
        has_lowest_pair(w->words.as<int32_t>(), ceil_div(k, 2) * words_stride(t.lanes));
    for (int64_t m = t.m; m < t.m_end; m += kRows)
      run_rows(t, m, std::min(m + kRows, t.m_end), k, first, last, w.get());
  });
}

// Runs rows [low, high) with the k whose points and words are in the workspace.
void LanesOfPairs::run_rows(const Task& t, int64_t low, int64_t high, int64_t k, bool first,
                            bool last, Workspace* w) const {
  find_rows(t, low, high, &w->places);
  const auto kernel = w->has_lowest_pair ? kernels_.lanes_of_any : kernels_.lanes;
  for (int64_t i = 0; i < high - low; ++i) {
    const int16_t* from[kBlock];
    sources(t, i, k, w->places, from);
    float* row = sums(t, low, i, w->places);
    kernel(from, w->words.as<int32_t>(), words_stride(t.lanes), static_cast<int>(k),
           static_cast<int>(t.lanes), first, row);
    if (last && splits_ == 1) scale(t.g, low + i, t.lane, t.lanes, row);
  }
}

// Scales the totals of (g, m), lanes [lane, lane + lanes), which start at row[0].
void LanesOfPairs::scale(int64_t g, int64_t m, int64_t lane, int64_t lanes, float* row) const {
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

void LanesOfPairs::combine(int64_t g, int64_t m, float* row) const {
  kernels_.combine(partial(0, g, m), partial_stride(), splits_, lanes_, nullptr, 1.0f, row);
  scale(g, m, 0, lanes_, row);
}

}  // namespace

std::unique_ptr<Job> make_lanes_of_pairs(const Part& part, const Operands& operands,
                                         const ContractionKernels& kernels, int threads) {
  return std::make_unique<LanesOfPairs>(part, operands, kernels, threads);
}

}  // namespace dfpjax
