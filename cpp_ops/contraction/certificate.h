// The choice of a cell's chain length from its norms.
#ifndef DFPJAX_CONTRACTION_CERTIFICATE_H_
#define DFPJAX_CONTRACTION_CERTIFICATE_H_

#include <cstdint>

#include "contraction/kernels/table.h"
#include "plan/plan.h"

namespace dfpjax {

// The longest chain, in words of two k, whose int32 sums cannot overflow (by Cauchy-Schwarz).
inline int chain_pairs(const Norms& row, const Norms& column) {
  for (int i = 0; i < kNorms; ++i)
    if (static_cast<float>(row.chunk[i]) * static_cast<float>(column.chunk[i]) < kCertifiedBelow)
      return kBlock / 2 >> i;
  return 1;
}

// The index of a chain of `pairs` words in the list of lengths 256, 128, ..., 2.
inline int chain_index(int pairs) {
  int index = 0;
  while (kBlock / 2 >> index > pairs) ++index;
  return index;
}

// A chain of 2 overflows int32 in one case only: all four mantissas are -32768, and the sum is
// 2^31. Quantization never makes such mantissas, but they may come from elsewhere.
inline constexpr auto kLowestPair = static_cast<int32_t>(0x80008000u);
// If a chunk of 4 contains such a pair, its norm is at least this.
inline constexpr int32_t kLowestPairNorm = (1 << (31 - kNormShift)) + 2;

inline bool has_lowest_pair(const int32_t* words, int64_t count) {
  int32_t found = 0;  // no early exit, so the compiler can vectorize the loop
  for (int64_t i = 0; i < count; ++i) found |= words[i] == kLowestPair ? 1 : 0;
  return found != 0;
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_CERTIFICATE_H_
