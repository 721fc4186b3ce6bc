// Plans, and their check: every path that this CPU supports has the bits of the reference.
#ifndef DFPJAX_TESTS_CASES_H_
#define DFPJAX_TESTS_CASES_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace dfpjax {

struct PartCode {
  int64_t mode, base_a, base_b, base_c, blocks_per_split;
  std::vector<Dim> g, m, n, k;
  std::vector<Window> windows;
  int64_t tile = 0;
};

std::vector<int64_t> encode(const std::vector<PartCode>& parts,
                            const std::vector<Grid>& grids = {});

inline Dim dim(int64_t extent, int64_t a, int64_t b, int64_t c, int window = -1, int64_t coef = 0) {
  return {extent, a, b, c, 0, 0, window, coef};
}

enum class Data { kNormal, kSmall, kFull, kOutliers, kMedium, kLowest, kLowestAlone };
inline constexpr Data kAllData[] = {Data::kNormal, Data::kMedium,   Data::kSmall,
                                    Data::kFull,   Data::kOutliers, Data::kLowest};

struct Case {
  std::string name;
  std::vector<PartCode> parts;
  int64_t a, b, c;  // buffer sizes
  int64_t exponents_a = 1, exponents_b = 1;
  std::vector<Grid> grids = {};  // of A and B, if they are in blocks
  uint32_t spread = 5;           // of the exponents
};

// Runs a case on every path with several numbers of threads. `exponent` is the least one of A.
void check(const Case& t, Data kind, int32_t exponent, std::mt19937* random, int chain = 0);

// The same case with operands in blocks.
Case in_grids(Case t, const Grid& grid_a, const Grid& grid_b, uint32_t spread);
// The same with small blocks, in rows that have these numbers of columns.
Case in_blocks(Case t, int64_t columns_a, int64_t columns_b, bool dithered, uint32_t spread);

// C[g,m,n] = A[g,m,k] B[g,k,n]; `ta` and `tb` store the operands transposed, `tc` the result.
Case dot(int64_t G, int64_t M, int64_t N, int64_t K, bool ta, bool tb, bool tc, int64_t split);

struct Conv {
  int64_t batch, height, width, in, out, kernel, stride, pad, dilation;
  int64_t out_height() const {
    return (height + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  }
  int64_t out_width() const { return (width + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; }
  std::string name() const;
};

Case fprop(const Conv& v, int64_t split);
Case wgrad(const Conv& v, int64_t split);
// The stride-1 input gradient.
Case dgrad(const Conv& v, int64_t split);

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_CASES_H_
