// Runs plans.
#ifndef DFPJAX_CONTRACT_H_
#define DFPJAX_CONTRACT_H_

#include <cstdint>
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

// One part each, of the respective mode, with K > 0.
bool run_tiles(const Part& part, const Operands& operands, const KernelTable& kernels,
               Executor& executor);
bool run_lanes(const Part& part, const Operands& operands, const KernelTable& kernels,
               Executor& executor);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACT_H_
