// The arithmetic of the contract, written as plainly as possible.
#ifndef DFPJAX_TESTS_REFERENCE_H_
#define DFPJAX_TESTS_REFERENCE_H_

#include <array>
#include <vector>

#include "contraction/contract.h"

namespace dfpjax {

struct ReferenceCounts {
  int64_t saturated = 0;                         // chains
  std::array<int64_t, kChainLengths> lengths{};  // multiply-accumulates with chains of 256, ..., 2
};

// Sums chains of `chain` products and saturates them; if `chain` is 0, sums certified chains.
// Winograd parts have certified chains only.
ReferenceCounts run_reference(const std::vector<Part>& parts, const Operands& operands, int chain);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_H_
