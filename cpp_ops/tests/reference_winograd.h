// Parts of the Winograd modes, in plain loops.
#ifndef DFPJAX_TESTS_REFERENCE_WINOGRAD_H_
#define DFPJAX_TESTS_REFERENCE_WINOGRAD_H_

#include "tests/reference.h"

namespace dfpjax {

// Chains are certified.
void run_winograd(const Part& p, const Operands& x, int64_t g, ReferenceCounts* counts);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_WINOGRAD_H_
