// Chains and their certificates, in plain loops.
#ifndef DFPJAX_TESTS_REFERENCE_CHAINS_H_
#define DFPJAX_TESTS_REFERENCE_CHAINS_H_

#include <cstdint>

#include "tests/reference_alignment.h"

namespace dfpjax {

// The longest certified chain of a tile and a panel, at most `longest`.
int64_t chain_length(const Matrix& a, int64_t m0, int64_t m1, const Matrix& b, int64_t n0,
                     int64_t n1, int64_t k0, int64_t k1, int64_t longest);

// The sum of a chain. Sums of fixed chains are saturated to an int32, which is counted.
float converted(int64_t sum, int64_t chain, int fixed_chain, int64_t* saturated);

// A total times 2^e, rounded once.
float scale(float total, int64_t e);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_REFERENCE_CHAINS_H_
