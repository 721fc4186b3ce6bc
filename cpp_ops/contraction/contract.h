// Runs plans.
#ifndef DFPJAX_CONTRACTION_CONTRACT_H_
#define DFPJAX_CONTRACTION_CONTRACT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/kernels/table.h"
#include "plan/plan.h"
#include "runtime/parallel.h"

namespace dfpjax {

class PackedB;

struct Operands {
  const int16_t* a;
  const int16_t* b;
  const int32_t* ea;
  const int32_t* eb;
  float* c;
  // May be null. Otherwise B, packed: b and eb are not read. The plan has one part, of mode
  // "tiles".
  std::shared_ptr<const PackedB> packed = nullptr;
};

// Counts events of one or more kinds for each example. G consists of the examples, one after the
// other, each with the same number of indices.
class Counts {
 public:
  Counts(int64_t examples, int64_t kinds)
      : examples_(examples), kinds_(kinds), counts_(static_cast<size_t>(examples * kinds)) {
    for (auto& count : counts_) count = 0;
  }
  // Whether the examples divide the G of every part evenly.
  bool fits(const std::vector<Part>& parts) const;
  // Adds integers, so the sum does not depend on the order of the threads.
  void add(const Part& part, int64_t g, int64_t kind, int64_t count) {
    const int64_t example = g / (part.G / examples_);
    counts_[static_cast<size_t>(example * kinds_ + kind)].fetch_add(count,
                                                                    std::memory_order_relaxed);
  }
  // Writes [examples][kinds]. A count that is too large is clamped to the largest int32.
  void write(int32_t* to) const;
  // Writes [examples][kinds]: the share of each kind in the events of the example, or zeros if it
  // has none.
  void write_shares(float* to) const;

 private:
  int64_t examples_, kinds_;
  std::vector<std::atomic<int64_t>> counts_;
};

// The length of the exact sums.
struct Chains {
  int length = 0;  // products: a power of two up to kBlock, or 0 for the longest certified one
  // The next two are for chains of a given length.
  bool bounded = false;  // mantissas are too small for a sum to overflow; no norms are taken
  Counts* saturated = nullptr;
  // For certified chains; may be null. Counts the multiply-adds done with each of the kChainLengths
  // lengths, the longest first.
  Counts* lengths = nullptr;
};

class OperandReuse;

// Runs a decoded plan. `reuse` may be null; only plans of a single part make use of it, if chains
// are certified and not counted. Throws OutOfScratch and std::bad_alloc.
void run_plan(const std::vector<Part>& parts, const Operands& operands, const Chains& chains,
              const ContractionKernels& kernels, Executor& executor, OperandReuse* reuse = nullptr);

// Outputs of at least this size bypass the caches.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

// The work of one part in each stage. The parts of a plan go through the stages together.
class Job {
 public:
  enum { kPrepare, kTransform, kCompute, kCombine, kStages };
  virtual ~Job() = default;
  virtual void enlist(std::vector<Stage>* stages) = 0;
};

// For parts with K > 0. Throw OutOfScratch and std::bad_alloc.
std::unique_ptr<Job> make_tiles(const Part& part, const Operands& operands, const Chains& chains,
                                const ContractionKernels& kernels, int threads,
                                OperandReuse& reuse);
// For certified chains and parts of mode "lanes". make_tiles can run these parts too, but slowly.
std::unique_ptr<Job> make_lanes(const Part& part, const Operands& operands,
                                const ContractionKernels& kernels, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_CONTRACT_H_
