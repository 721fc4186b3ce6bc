#include "tests/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "tests/reference_alignment.h"
#include "tests/reference_chains.h"
#include "tests/reference_elements.h"
#include "tests/reference_winograd.h"

namespace dfpjax {
namespace {

// The operands for one g: mantissas, and exponents if they are in blocks.
struct Group {
  Matrix a, b, ea, eb;
};

Group gathered(const Part& p, const Operands& x, int64_t g) {
  const std::vector<int32_t> zeros(p.K), nothing(p.K, kNothing);
  Group group{Matrix(p.M, zeros), Matrix(p.N, zeros), Matrix(p.M, nothing), Matrix(p.N, nothing)};
  for (int64_t k = 0; k < p.K; ++k) {
    Position at = start(p, g);
    at.add(p.k, k);
    for (int64_t m = 0; m < p.M; ++m) {
      Position row = at;
      row.add(p.m, m);
      element_a(p, x, row, &group.a[m][k], &group.ea[m][k]);
    }
    for (int64_t n = 0; n < p.N; ++n) {
      Position column = at;
      column.add(p.n, n);
      group.b[n][k] = x.b[column.b];
      if (p.in_blocks) group.eb[n][k] = exponent_at(p.grid_b, x.eb, column.b);
    }
  }
  return group;
}

// Writes an output, the sum of its splits.
void store(const Part& p, const Operands& x, int64_t g, int64_t m, int64_t n,
           const std::vector<RunningSum>& splits) {
  Position at = start(p, g);
  at.add(p.m, m);
  at.add(p.n, n);
  const RunningSum sum = combined(splits);
  const int64_t exponent = p.in_blocks ? sum.exponent() : int64_t{x.ea[at.ea]} + x.eb[at.eb];
  x.c[at.c] = std::isnan(sum.total) ? sum.total : scale(sum.total, exponent);
}

// Depthwise, operands in blocks: each product has units of its own.
void run_products(const Part& p, const Operands& x, int64_t g, ReferenceCounts* counts) {
  const Group group = gathered(p, x, g);
  const std::vector<int32_t>&b = group.b[0], &eb = group.eb[0];
  for (int64_t m = 0; m < p.M; ++m) {
    const std::vector<int32_t>&a = group.a[m], &ea = group.ea[m];
    std::vector<RunningSum> splits;
    for (int64_t k0 = 0; k0 < p.K; k0 += kBlock) {
      if (k0 % (p.blocks_per_split * kBlock) == 0) splits.emplace_back();
      RunningSum& running = splits.back();
      std::vector<int32_t> exponents;
      bool lost = false;
      for (int64_t k = k0; k < std::min(k0 + kBlock, p.K); ++k) {
        exponents.push_back(product_exponent(ea[k], eb[k]));
        lost = lost || is_lost(ea[k]) || is_lost(eb[k]);
      }
      const std::vector<float> factors = running.factors(exponents);
      for (size_t i = 0; i < factors.size(); ++i) {
        const int64_t k = k0 + static_cast<int64_t>(i);
        running.total += factors[i] * static_cast<float>(a[k] * b[k]);
      }
      if (lost) running.total = std::numeric_limits<float>::quiet_NaN();
    }
    store(p, x, g, m, 0, splits);
  }
  counts->lengths.back() += p.M * p.K;
}

void run_cells(const Part& p, const Operands& x, int64_t g, int fixed_chain,
               ReferenceCounts* counts) {
  Group group = gathered(p, x, g);
  Matrix &a = group.a, &b = group.b;
  AlignedRows rows, columns;
  if (p.in_blocks) {
    rows = align_rows(&a, group.ea, false, p.grid_a.dithered);
    columns = align_rows(&b, group.eb, true, p.grid_b.dithered);
  }
  const int64_t panel = p.in_blocks ? kBlocksPanelColumns : kPanelColumns;
  // The stretches of a block have chain lengths of their own.
  const int64_t stretch = p.in_blocks ? kSegment : kBlock;
  // Sums in lanes do not begin anew with each block of k.
  const bool in_lanes = p.mode == Mode::kLanes && fixed_chain == 0;
  for (int64_t m0 = 0; m0 < p.M; m0 += kTileRows)
    for (int64_t n0 = 0; n0 < p.N; n0 += panel) {
      const int64_t m1 = std::min<int64_t>(m0 + kTileRows, p.M);
      const int64_t n1 = std::min<int64_t>(n0 + panel, p.N);
      const int64_t split = p.blocks_per_split * kBlock;
      std::vector<std::vector<RunningSum>> splits;
      for (int64_t s0 = 0; s0 < p.K; s0 += split) {
        std::vector<RunningSum> sums((m1 - m0) * (n1 - n0));
        for (int64_t k0 = s0; k0 < std::min(s0 + split, p.K); k0 += kBlock) {
          const int64_t block = k0 / kBlock, k1 = std::min<int64_t>(k0 + kBlock, p.K);
          std::vector<int64_t> chains;  // of each stretch
          for (int64_t t0 = k0; t0 < k1; t0 += stretch) {
            const int64_t t1 = std::min(t0 + stretch, k1);
            chains.push_back(fixed_chain > 0 ? std::min<int64_t>(fixed_chain, stretch)
                             : in_lanes      ? 2
                                             : chain_length(a, m0, m1, b, n0, n1, t0, t1, stretch));
            const auto index = static_cast<size_t>(std::log2(kBlock / chains.back()));
            counts->lengths[index] += (m1 - m0) * (n1 - n0) * (t1 - t0);
          }
          for (int64_t m = m0; m < m1; ++m)
            for (int64_t n = n0; n < n1; ++n) {
              RunningSum& running = sums[(m - m0) * (n1 - n0) + n - n0];
              std::vector<float> factors{1};
              if (p.in_blocks) {
                std::vector<int32_t> exponents;
                for (int64_t s = block * kSegments; s < (block + 1) * kSegments; ++s)
                  exponents.push_back(
                      product_exponent(rows.exponents[m][s], columns.exponents[n][s]));
                factors = running.factors(exponents);
              }
              float cell = in_lanes ? running.total : 0;
              for (size_t t = 0; t < chains.size(); ++t) {
                const int64_t t0 = k0 + static_cast<int64_t>(t) * stretch;
                const int64_t t1 = std::min(t0 + stretch, k1);
                for (int64_t c = t0; c < t1; c += chains[t]) {
                  int64_t sum = 0;
                  for (int64_t k = c; k < std::min(c + chains[t], t1); ++k)
                    sum += a[m][k] * b[n][k];
                  cell += factors[t] * converted(sum, chains[t], fixed_chain, &counts->saturated);
                }
              }
              running.total = in_lanes ? cell : running.total + cell;
              if (p.in_blocks && (rows.lost[m][block] || columns.lost[n][block]))
                running.total = std::numeric_limits<float>::quiet_NaN();
            }
        }
        splits.push_back(sums);
      }
      for (int64_t m = m0; m < m1; ++m)
        for (int64_t n = n0; n < n1; ++n) {
          std::vector<RunningSum> parts;
          for (const auto& sums : splits) parts.push_back(sums[(m - m0) * (n1 - n0) + n - n0]);
          store(p, x, g, m, n, parts);
        }
    }
}

}  // namespace

ReferenceCounts run_reference(const std::vector<Part>& parts, const Operands& operands, int chain) {
  ReferenceCounts counts;
  for (const Part& p : parts)
    for (int64_t g = 0; g < p.G; ++g)
      if (p.mode == Mode::kWinogradAlongM || p.mode == Mode::kWinogradAlongK)
        run_winograd(p, operands, g, &counts);
      else if (p.mode == Mode::kLanes && p.in_blocks && chain == 0)
        run_products(p, operands, g, &counts);
      else
        run_cells(p, operands, g, chain, &counts);
  return counts;
}

}  // namespace dfpjax
