// The arithmetic of the contract, written as plainly as possible.
#ifndef DFPJAX_TESTS_REFERENCE_H_
#define DFPJAX_TESTS_REFERENCE_H_

#include <vector>

#include "contract.h"

namespace dfpjax {

// Chains of `chain` products, saturated, or certified ones if it is 0. Returns how many were
// saturated.
int64_t run_reference(const std::vector<Part>& parts, const Operands& operands, int chain);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_H_
