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

struct Operands {
  const int16_t* a;
  const int16_t* b;
  const int32_t* ea;
  const int32_t* eb;
  float* c;
};

// Counts things of one kind or of several, for each of the examples that make up G, evenly and in
// order.
class Counts {
 public:
  Counts(int64_t examples, int64_t kinds)
      : examples_(examples), kinds_(kinds), counts_(static_cast<size_t>(examples * kinds)) {
    for (auto& count : counts_) count = 0;
  }
  // Whether the G of every part can be divided so.
  bool fits(const std::vector<Part>& parts) const;
  // Integers: the sum does not depend on who adds first.
  void add(const Part& part, int64_t g, int64_t kind, int64_t count) {
    const int64_t example = g / (part.G / examples_);
    counts_[static_cast<size_t>(example * kinds_ + kind)].fetch_add(count,
                                                                    std::memory_order_relaxed);
  }
  // Writes the counts, all kinds of one example after the other; those that are too large as the
  // largest int32.
  void write(int32_t* to) const;
  // The same as shares of what was counted for the example; zeros if that is nothing.
  void write_shares(float* to) const;

 private:
  int64_t examples_, kinds_;
  std::vector<std::atomic<int64_t>> counts_;
};

// How long the exact sums are.
struct Chains {
  int length = 0;  // products: a power of two up to kBlock; 0 for the longest that is certified
  // The rest is for chains of a given length.
  bool bounded = false;  // mantissas are too small for any sum to leave int32: nothing is checked
  Counts* saturated = nullptr;
  // For certified chains, unless it is null: the multiply-accumulates that are done with each of
  // the kChainLengths lengths, the longest first.
  Counts* lengths = nullptr;
};

// Runs a decoded plan. Returns false if there was not enough memory.
bool run_plan(const std::vector<Part>& parts, const Operands& operands, const Chains& chains,
              const ContractionKernels& kernels, Executor& executor);

// Outputs of that size are not worth a place in the caches.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

// What one part does in each stage; the parts of a plan go through the stages together.
class Job {
 public:
  enum { kPrepare, kCompute, kCombine, kStages };
  virtual ~Job() = default;
  virtual void enlist(std::vector<Stage>* stages) = 0;
};

// For parts with K > 0. Throw std::bad_alloc.
std::unique_ptr<Job> make_tiles(const Part& part, const Operands& operands, const Chains& chains,
                                const ContractionKernels& kernels, int threads);
// For certified chains and parts of mode "lanes", which tiles can run, too, though slowly.
std::unique_ptr<Job> make_lanes(const Part& part, const Operands& operands,
                                const ContractionKernels& kernels, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_CONTRACT_H_
