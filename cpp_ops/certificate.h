// The choice of a cell's chain length from its norms.
#ifndef DFPJAX_CERTIFICATE_H_
#define DFPJAX_CERTIFICATE_H_

#include "isa.h"
#include "plan.h"

namespace dfpjax {

// The longest chain, in words of two k, whose int32 sums cannot overflow (by Cauchy-Schwarz).
inline int chain_pairs(const Norms& row, const Norms& column) {
  constexpr float kLimit = 70367670435840.0f;  // 2^46 - 2^30
  const int32_t rows[6] = {row.chunk[0], row.chunk[1], row.chunk[2],
                           row.chunk[3], 8 * row.pair, 4 * row.pair};
  const int32_t columns[6] = {column.chunk[0], column.chunk[1], column.chunk[2],
                              column.chunk[3], 8 * column.pair, 4 * column.pair};
  for (int i = 0; i < 6; ++i)
    if (static_cast<float>(rows[i]) * static_cast<float>(columns[i]) < kLimit)
      return kBlock / 2 >> i;
  return 1;
}

}  // namespace dfpjax

#endif  // DFPJAX_CERTIFICATE_H_
