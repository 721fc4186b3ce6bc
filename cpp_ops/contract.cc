#include "contract.h"

#include <algorithm>
#include <new>

#include "index.h"
#include "packing.h"
#include "scaling.h"

namespace dfpjax {
namespace {

// An empty sum, scaled: zero, or NaN.
bool run_empty(const Part& part, const Operands& operands, Executor& executor) {
  const Scaling scaling(part, operands.ea, operands.eb);
  const Axis c_g(part.g, &Dim::stride_c, nullptr);
  const Axis c_m(part.m, &Dim::stride_c, nullptr);
  const Axis c_n(part.n, &Dim::stride_c, nullptr);
  std::vector<int64_t> columns(static_cast<size_t>(part.N));
  c_n.offsets(0, part.N, 0, columns.data());
  const bool contiguous = c_n.run_extent() == part.N;
  constexpr int64_t kRows = 64;  // at a time, to find their addresses in one go
  const int64_t chunks = ceil_div(part.M, kRows);
  return parallel_for(executor, part.G * chunks, 16, [&](int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) {
      const int64_t g = i / chunks, m0 = i % chunks * kRows, m1 = std::min(m0 + kRows, part.M);
      int64_t offsets[kRows];
      c_m.offsets(m0, m1, part.base_c + c_g.offset(g), offsets);
      for (int64_t m = m0; m < m1; ++m) {
        float* row = operands.c + offsets[m - m0];
        if (contiguous)
          std::fill(row, row + part.N, 0.0f);
        else
          for (int64_t column : columns) row[column] = 0;
        if (!scaling.is_factor()) scaling.apply(g, m, 0, part.N, columns.data(), row);
      }
    }
  });
}

}  // namespace

bool run_plan(const std::vector<Part>& parts, const Operands& operands, const KernelTable& kernels,
              Executor& executor) {
  try {
    for (const Part& part : parts) {
      const bool ok = part.K == 0                 ? run_empty(part, operands, executor)
                      : part.mode == Mode::kLanes ? run_lanes(part, operands, kernels, executor)
                                                  : run_tiles(part, operands, kernels, executor);
      if (!ok) return false;
    }
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace dfpjax
