// The arithmetic of the contract, written as plainly as possible.
#ifndef DFPJAX_TESTS_REFERENCE_H_
#define DFPJAX_TESTS_REFERENCE_H_

#include <vector>

#include "contract.h"

namespace dfpjax {

void run_reference(const std::vector<Part>& parts, const Operands& operands);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_H_
