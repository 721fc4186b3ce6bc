#include "tests/reference_winograd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/reference_alignment.h"
#include "tests/reference_chains.h"
#include "tests/reference_elements.h"
#include "tests/reference_transforms.h"

namespace dfpjax {
namespace {

constexpr int kMostBelow = 100;      // an element further below its row's exponent is zero
constexpr int kMostScaleBelow = 48;  // of rows and columns

float power_of_two(int64_t e) { return std::ldexp(1.0f, static_cast<int>(e)); }

// The dimensions of a part: some are cut into tiles, the others are channels and taps.
struct Tiling {
  const Part& p;
  bool along_m;
  const std::vector<Dim>&tiled, &untiled;
  std::vector<int64_t> tiles;  // the extents of `tiled`, in tiles
  int64_t tile_count = 1, channels = 1;

  explicit Tiling(const Part& part)
      : p(part),
        along_m(part.mode == Mode::kWinogradAlongM),
        tiled(along_m ? part.m : part.k),
        untiled(along_m ? part.k : part.m) {
    for (const Dim& d : tiled) {
      tiles.push_back(d.window < 0 ? d.extent : (d.extent + p.tile - 1) / p.tile);
      tile_count *= tiles.back();
    }
    for (const Dim& d : untiled)
      if (d.window < 0) channels *= d.extent;
  }

  size_t axes() const { return p.windows.size(); }
  // The number of places in a square of this side, or on a line.
  size_t power(int side) const { return static_cast<size_t>(axes() == 2 ? side * side : side); }
  // The coordinate of place i along the axis of a window.
  int64_t along(int window, int64_t i, int side) const {
    return axes() == 2 && window == 0 ? i / side : i % side;
  }

  // The position where output `output(window)` of a tile meets a tap. Sets *exists to whether the
  // tensor of outputs has this one. Where taps run backwards through A, they are counted from the
  // last.
  template <class Output, class Tap>
  Position at(int64_t g, int64_t tile, int64_t channel, Output output, Tap tap,
              bool* exists) const {
    Position position = start(p, g);
    int64_t direction[2] = {};
    *exists = true;
    for (size_t i = tiled.size(); i-- > 0;) {
      const Dim& d = tiled[i];
      int64_t index = tile % tiles[i];
      tile /= tiles[i];
      if (d.window >= 0) {
        index = index * p.tile + output(d.window);
        if (index >= d.extent) *exists = false;
        direction[d.window] = d.coef;
      }
      position.add(d, index);
    }
    for (const Dim& d : untiled) {
      int64_t index = channel;
      if (d.window >= 0)
        index = d.coef == direction[d.window] ? tap(d.window) : d.extent - 1 - tap(d.window);
      position.add(d, index);
    }
    return position;
  }

  TileShape shape() const { return {p.tile, p.taps}; }
  // Point i of a patch of A: where output o meets tap i - o.
  Position in_patch(int64_t g, int64_t tile, int64_t channel, int64_t i) const {
    const int side = shape().points();
    const auto tap = [&](int w) { return std::min<int64_t>(along(w, i, side), p.taps - 1); };
    const auto output = [&](int w) { return along(w, i, side) - tap(w); };
    bool exists;
    return at(g, tile, channel, output, tap, &exists);
  }
  // Output i of a tile, or tap i.
  Position of_output(int64_t g, int64_t tile, int64_t i, bool* exists) const {
    return at(
        g, tile, 0, [&](int w) { return along(w, i, p.tile); }, [](int) { return int64_t{0}; },
        exists);
  }
  Position of_tap(int64_t g, int64_t channel, int64_t i) const {
    bool exists;
    return at(
        g, 0, channel, [](int) { return int64_t{0}; }, [&](int w) { return along(w, i, p.taps); },
        &exists);
  }
};

struct Element {
  int32_t mantissa = 0, exponent = kNothing;
};

// A transformed operand.
struct Transformed {
  std::vector<Matrix> mantissas;             // [position][row][k]
  std::vector<std::vector<Numbers>> scales;  // [position][row][block]
  std::vector<int64_t> bases;                // [row]
  std::vector<bool> lost;                    // [row]
};

// Rounds the values of a row and block at one position to mantissas. Returns their exponent.
int32_t quantize(const Numbers& values, float norm, int32_t* mantissas) {
  float most = 0;
  for (float value : values) most = std::max(most, std::fabs(value));
  most *= std::fabs(norm);
  int32_t bits;
  std::memcpy(&bits, &most, sizeof bits);
  const int32_t exponent = ((bits + 256) >> 23) - 127 - 14;
  if (most == 0 || exponent < -kMostScaleBelow) return kNothing;
  const float factor = norm * power_of_two(-exponent);
  for (size_t i = 0; i < values.size(); ++i)
    mantissas[i] =
        static_cast<int32_t>(std::clamp(std::nearbyint(values[i] * factor), -32767.0f, 32767.0f));
  return exponent;
}

// Transforms an operand, given element(row, k, i) with `elements` for each row and k. Blocks of k
// have `block`.
Transformed transformed(const Tiling& t, int64_t rows, int64_t size, int64_t block, size_t elements,
                        TransformAlongAxis transform, const Numbers& norms,
                        const std::function<Element(int64_t, int64_t, int64_t)>& element) {
  const auto blocks = static_cast<size_t>((size + block - 1) / block);
  Transformed result;
  result.mantissas.assign(norms.size(), Matrix(rows, std::vector<int32_t>(size)));
  result.scales.assign(norms.size(), std::vector<Numbers>(rows, Numbers(blocks)));
  for (int64_t row = 0; row < rows; ++row) {
    Matrix exponents(norms.size());  // [position][block]
    int32_t base = kNothing;
    bool lost = false;
    for (int64_t k0 = 0; k0 < size; k0 += block) {
      const int64_t k1 = std::min(k0 + block, size);
      std::vector<Element> all;
      int32_t unit = kNothing;
      for (int64_t k = k0; k < k1; ++k)
        for (size_t i = 0; i < elements; ++i) {
          all.push_back(element(row, k, static_cast<int64_t>(i)));
          const int32_t e = all.back().exponent;
          lost = lost || is_lost(e);
          if (!is_absent(e)) unit = std::max(unit, e);
        }
      base = std::max(base, unit);
      std::vector<Numbers> values(norms.size());  // [position][k]
      for (int64_t k = k0; k < k1; ++k) {
        Numbers patch;
        for (size_t i = 0; i < elements; ++i) {
          const Element& x = all[static_cast<size_t>(k - k0) * elements + i];
          const bool counts = !is_absent(x.exponent) && unit - x.exponent <= kMostBelow;
          patch.push_back(counts ? static_cast<float>(x.mantissa) * power_of_two(x.exponent - unit)
                                 : 0);
        }
        const Numbers points =
            along_axes(transform, t.shape(), t.axes(), t.shape().points() == 6, patch);
        for (size_t p = 0; p < norms.size(); ++p) values[p].push_back(points[p]);
      }
      for (size_t p = 0; p < norms.size(); ++p) {
        const int32_t e = quantize(values[p], norms[p], &result.mantissas[p][row][k0]);
        exponents[p].push_back(e == kNothing ? kNothing : unit + e);
      }
    }
    if (base == kNothing) base = 0;
    result.bases.push_back(base);
    result.lost.push_back(lost);
    for (size_t p = 0; p < norms.size(); ++p)
      for (size_t b = 0; b < blocks; ++b) {
        const int64_t above = int64_t{exponents[p][b]} - base;
        if (exponents[p][b] != kNothing && above >= -kMostScaleBelow)
          result.scales[p][row][b] = power_of_two(above);
      }
  }
  return result;
}

// The sums at one position over k in [low, high): [row][column].
std::vector<Numbers> multiplied(const Transformed& a, const Transformed& b, size_t p, int64_t low,
                                int64_t high, int64_t block, ReferenceCounts* counts) {
  const Matrix &rows = a.mantissas[p], &columns = b.mantissas[p];
  const auto M = static_cast<int64_t>(rows.size()), N = static_cast<int64_t>(columns.size());
  std::vector<Numbers> sums(rows.size(), Numbers(columns.size()));
  for (int64_t m0 = 0; m0 < M; m0 += kTileRows)
    for (int64_t n0 = 0; n0 < N; n0 += kPanelColumns)
      for (int64_t k0 = low; k0 < high; k0 += block) {
        const int64_t m1 = std::min(m0 + kTileRows, M), n1 = std::min(n0 + kPanelColumns, N);
        const int64_t k1 = std::min(k0 + block, high);
        const int64_t chain = chain_length(rows, m0, m1, columns, n0, n1, k0, k1, kBlock);
        counts->lengths[static_cast<size_t>(std::log2(kBlock / chain))] +=
            (m1 - m0) * (n1 - n0) * (k1 - k0);
        for (int64_t m = m0; m < m1; ++m)
          for (int64_t n = n0; n < n1; ++n) {
            float cell = 0;
            for (int64_t c = k0; c < k1; c += chain) {
              int64_t sum = 0;
              for (int64_t k = c; k < std::min(c + chain, k1); ++k)
                sum += int64_t{rows[m][k]} * columns[n][k];
              cell += converted(sum, chain, 0, &counts->saturated);
            }
            const int64_t at = k0 / block;
            sums[m][n] += cell * (a.scales[p][m][at] * b.scales[p][n][at]);
          }
      }
  return sums;
}

}  // namespace

void run_winograd(const Part& p, const Operands& x, int64_t g, ReferenceCounts* counts) {
  const Tiling t(p);
  const Numbers norms = normalizations(t.shape().points(), t.axes()), ones(norms.size(), 1.0f);
  const int64_t rows = t.along_m ? t.tile_count : t.channels;
  const int64_t size = t.along_m ? t.channels : t.tile_count;
  const int64_t block = t.along_m ? kBlock : kBlock / 2;

  const auto of_a = [&](int64_t row, int64_t k, int64_t i) {
    Element result;
    const Position at = t.in_patch(g, t.along_m ? row : k, t.along_m ? k : row, i);
    element_a(p, x, at, &result.mantissa, &result.exponent);
    return result;
  };
  const auto of_b = [&](int64_t column, int64_t k, int64_t i) -> Element {
    bool exists = true;
    Position at = t.along_m ? t.of_tap(g, k, i) : t.of_output(g, k, i, &exists);
    if (!exists) return {};
    at.add(p.n, column);
    return {x.b[at.b], exponent_at(p.grid_b, x.eb, at.b)};
  };
  const Transformed a =
      transformed(t, rows, size, block, norms.size(), input_transform, ones, of_a);
  const Transformed b =
      transformed(t, p.N, size, block, t.power(t.along_m ? p.taps : p.tile),
                  t.along_m ? kernel_transform : cotangent_transform, norms, of_b);

  const int64_t split = t.along_m ? size : p.blocks_per_split * block;
  const TransformAlongAxis back = t.along_m ? output_transform : taps_transform;
  std::vector<std::vector<Numbers>> totals(rows, std::vector<Numbers>(p.N));  // [row][column][i]
  for (int64_t low = 0; low < size; low += split) {
    std::vector<std::vector<Numbers>> sums;  // [position][row][column]
    for (size_t i = 0; i < norms.size(); ++i)
      sums.push_back(multiplied(a, b, i, low, std::min(low + split, size), block, counts));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < p.N; ++column) {
        Numbers points;
        for (const auto& sum : sums) points.push_back(sum[row][column]);
        const Numbers result = along_axes(back, t.shape(), t.axes(), false, points);
        Numbers& total = totals[row][column];
        if (low == 0) total = result;
        for (size_t i = 0; low > 0 && i < total.size(); ++i) total[i] += result[i];
      }
  }

  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < p.N; ++column)
      for (size_t i = 0; i < totals[row][column].size(); ++i) {
        bool exists = true;
        Position at = t.along_m ? t.of_output(g, row, static_cast<int64_t>(i), &exists)
                                : t.of_tap(g, row, static_cast<int64_t>(i));
        if (!exists) continue;
        at.add(p.n, column);
        x.c[at.c] = a.lost[row] || b.lost[column]
                        ? std::numeric_limits<float>::quiet_NaN()
                        : scale(totals[row][column][i], a.bases[row] + b.bases[column]);
      }
}

}  // namespace dfpjax
