// What parts of mode "lanes" have in common. Lanes share no operand elements, so nothing is reused,
// and a vectorized direct loop over the last G dimension suffices.
#ifndef DFPJAX_CONTRACTION_LANES_H_
#define DFPJAX_CONTRACTION_LANES_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/contract.h"
#include "contraction/packing.h"
#include "plan/index.h"
#include "plan/plan.h"
#include "runtime/scratch.h"

namespace dfpjax {

class LaneJob : public Job {
 public:
  void enlist(std::vector<Stage>* stages) override;

 protected:
  // The lanes of one task. Their share of B stays in the second-level cache.
  static constexpr int64_t kRange = kPanelsPerPack * kPanelColumns;
  static constexpr int64_t kRows = 256;  // whose addresses are computed together

  // One outer g, one split of k, a range of lanes and a range of rows.
  struct Task {
    int64_t g, split, lane, lanes, m, m_end;
  };
  // Where the operands of a task lie.
  struct Places {
    Places() : zeros(kRange), points(kBlock), rows(kRows), outputs(kRows) {}
    const std::vector<int16_t> zeros;
    Point origin{};
    std::vector<Point> points, rows;
    std::vector<int64_t> outputs;
  };

  LaneJob(const Part& part, const Operands& operands, const ContractionKernels& kernels,
          int threads);
  virtual void run_task(const Task& task, int worker) = 0;
  // Adds up the splits of row m of g.
  virtual void combine(int64_t g, int64_t m, float* row) const = 0;

  // Calls f(k0, k, first, last) for each block of k of a task's split, with the points of its k.
  template <class F>
  void for_blocks(const Task& t, Places* places, F f) const {
    find_origin(t, places);
    const int64_t begin = t.split * p_.blocks_per_split * kBlock;
    const int64_t end = std::min(begin + p_.blocks_per_split * kBlock, p_.K);
    for (int64_t k0 = begin; k0 < end; k0 += kBlock) {
      const int64_t k = std::min<int64_t>(kBlock, end - k0);
      find_points(k0, k, places);
      f(k0, k, k0 == begin, k0 + k == end);
    }
  }
  void find_rows(const Task& t, int64_t low, int64_t high, Places* places) const;
  // The elements of A for row i of the last rows and all k of the last points.
  void sources(const Task& t, int64_t i, int64_t k, const Places& places,
               const int16_t** out) const;
  // The sums of row i of the last rows, from m on.
  float* sums(const Task& t, int64_t m, int64_t i, const Places& places) const;
  // The partial sums of a split, from the first lane on, if there are several splits.
  float* partial(int64_t split, int64_t g, int64_t m) const {
    return partial_.as<float>() + ((split * outer_.G + g) * p_.M + m) * lanes_;
  }
  int64_t partial_stride() const { return p_.G * p_.M; }  // of splits

  const Part& p_;
  const ContractionKernels& kernels_;
  const Part outer_;  // the part without its lane dimension
  const int64_t lanes_, splits_;
  const int threads_;

 private:
  Task task(int64_t index) const;
  void find_origin(const Task& t, Places* places) const;
  void find_points(int64_t k0, int64_t k, Places* places) const;

  const int16_t* const a_;
  float* const c_;
  const Bounds bounds_;
  const Axis a_g_, a_m_, a_k_, c_g_, c_m_;
  const int64_t ranges_;
  int64_t rows_, row_blocks_;  // of a task
  Scratch partial_;
};

// For operands that are not in blocks, and for operands in blocks.
std::unique_ptr<Job> make_lanes_of_pairs(const Part& part, const Operands& operands,
                                         const ContractionKernels& kernels, int threads);
std::unique_ptr<Job> make_lanes_in_blocks(const Part& part, const Operands& operands,
                                          const ContractionKernels& kernels, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_LANES_H_
