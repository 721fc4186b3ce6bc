// Runs plans.
#ifndef DFPJAX_CONTRACT_H_
#define DFPJAX_CONTRACT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "plan.h"

namespace dfpjax {

struct Operands {
  const int16_t* a;
  const int16_t* b;
  const int32_t* ea;
  const int32_t* eb;
  float* c;
};

// Runs a decoded plan. Returns false if there was not enough memory.
bool run_plan(const std::vector<Part>& parts, const Operands& operands, const KernelTable& kernels,
              Executor& executor);

// Outputs of that size are not worth a place in the caches.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

// What one part does in each stage; the parts of a plan go through the stages together.
class Job {
 public:
  enum { kPrepare, kCompute, kCombine, kStages };
  virtual ~Job() = default;
  virtual void enlist(std::vector<Stage>* stages) = 0;
};

// For parts of the respective mode, with K > 0. Throw std::bad_alloc.
std::unique_ptr<Job> make_tiles(const Part& part, const Operands& operands,
                                const KernelTable& kernels, int threads);
std::unique_ptr<Job> make_lanes(const Part& part, const Operands& operands,
                                const KernelTable& kernels, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACT_H_
