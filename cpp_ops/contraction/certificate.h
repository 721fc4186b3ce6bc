// The choice of a cell's chain length from its norms.
#ifndef DFPJAX_CONTRACTION_CERTIFICATE_H_
#define DFPJAX_CONTRACTION_CERTIFICATE_H_

#include "contraction/kernels/table.h"
#include "plan/plan.h"

namespace dfpjax {

// The longest chain, in words of two k, whose int32 sums cannot overflow (by Cauchy-Schwarz).
inline int chain_pairs(const Norms& row, const Norms& column) {
  constexpr float kLimit = 70367670435840.0f;  // 2^46 - 2^30
  for (int i = 0; i < kNorms; ++i)
    if (static_cast<float>(row.chunk[i]) * static_cast<float>(column.chunk[i]) < kLimit)
      return kBlock / 2 >> i;
  return 1;
}

// Which of the lengths 256, 128, ..., 2 so many words are.
inline int chain_index(int pairs) {
  int index = 0;
  while (kBlock / 2 >> index > pairs) ++index;
  return index;
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_CERTIFICATE_H_
