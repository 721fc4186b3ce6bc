#include "contraction/winograd.h"

#include <array>
#include <cstring>
#include <limits>

#include "contraction/alignment.h"
#include "contraction/certificate.h"
#include "contraction/packing.h"
#include "contraction/running.h"
#include "contraction/scaling.h"

namespace dfpjax {
namespace {

// n of each point: the product of its differences from the others.
template <size_t kPoints>
std::array<double, kPoints> differences(const std::array<double, kPoints - 1>& points) {
  std::array<double, kPoints> result{};
  result.back() = 1;
  for (size_t i = 0; i + 1 < kPoints; ++i) {
    result[i] = 1;
    for (size_t j = 0; j + 1 < kPoints; ++j)
      if (j != i) result[i] *= points[i] - points[j];
  }
  return result;
}

template <size_t kPoints>
std::array<float, kMostPositions> products(const std::array<double, kPoints>& n, bool two) {
  std::array<float, kMostPositions> result{};
  for (size_t y = 0; y < (two ? kPoints : 1); ++y)
    for (size_t x = 0; x < kPoints; ++x)
      result[y * kPoints + x] = static_cast<float>(1 / ((two ? n[y] : 1) * n[x]));
  return result;
}

}  // namespace

const float* normalization(const WinogradTile& tile) {
  static const auto of_six = differences<6>({0, 0.625, -0.625, 1.5, -1.5});
  static const auto of_four = differences<4>({0, 1, -1});
  static const std::array<std::array<float, kMostPositions>, 4> all = {
      products(of_four, false), products(of_four, true), products(of_six, false),
      products(of_six, true)};
  return all[static_cast<size_t>((tile.points() == 6 ? 2 : 0) + tile.axes - 1)].data();
}

const float kOnes[kMostPositions] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

WinogradPart::WinogradPart(const Part& part)
    : p_(part), tile_{part.tile, part.taps, static_cast<int>(part.windows.size())} {
  for (int w = 0; w < tile_.axes; ++w) {
    const auto moves = [w](const Dim& d) { return d.window == w; };
    const Dim& of_m = *std::find_if(p_.m.begin(), p_.m.end(), moves);
    const Dim& of_k = *std::find_if(p_.k.begin(), p_.k.end(), moves);
    WinogradAxis axis{along_m() ? of_m : of_k, along_m() ? of_k : of_m, 0, 0, false};
    axis.tiles = ceil_div(axis.tiled.extent, tile_.outputs);
    axis.reversed = axis.taps.coef != axis.tiled.coef;
    axis.origin = p_.windows[static_cast<size_t>(w)].offset -
                  (axis.reversed ? (axis.taps.extent - 1) * axis.tiled.coef : 0);
    axes_.push_back(axis);
  }
}

Dim WinogradPart::channels() const {
  const auto& dims = along_m() ? p_.k : p_.m;
  return *std::find_if(dims.begin(), dims.end(), [](const Dim& d) { return d.window < 0; });
}

std::vector<Dim> WinogradPart::tiled_dims(bool directed) const {
  std::vector<Dim> dims = along_m() ? p_.m : p_.k;
  for (Dim& d : dims) {
    if (d.window < 0) continue;
    const WinogradAxis& axis = axes_[static_cast<size_t>(d.window)];
    d.extent = axis.tiles;
    d.coef = tile_.outputs * (directed ? axis.tiled.coef : 1);
  }
  return dims;
}

template <class F>
std::vector<Point> WinogradPart::elements(int extent, F move) const {
  std::vector<Point> result(static_cast<size_t>(tile_.power(extent)));
  for (int i = 0; i < static_cast<int>(result.size()); ++i) {
    const int index[2] = {tile_.axes == 2 ? i / extent : i, i % extent};
    for (size_t w = 0; w < axes_.size(); ++w)
      move(axes_[w], index[w], &result[static_cast<size_t>(i)], w);
  }
  return result;
}

Patchwork WinogradPart::patches_of_a() const {
  std::vector<Window> windows = p_.windows;
  for (size_t w = 0; w < windows.size(); ++w) windows[w].offset = axes_[w].origin;
  return {
      Axis(tiled_dims(true), &Dim::stride_a, &windows), make_origin(windows), make_bounds(windows),
      elements(tile_.points(), [&](const WinogradAxis& axis, int index, Point* point, size_t w) {
        const int64_t by = index * axis.tiled.coef;
        point->coord[w] = static_cast<int32_t>(by);
        point->offset += by * windows[w].stride_a;
      })};
}

Patchwork WinogradPart::tiles(int64_t Dim::* stride) const {
  std::vector<Window> windows;
  for (const WinogradAxis& axis : axes_)
    windows.push_back({axis.tiled.extent, axis.tiled.*stride, 0});
  return {Axis(tiled_dims(false), stride, &windows),
          {},
          make_bounds(windows),
          elements(tile_.outputs,
                   [stride](const WinogradAxis& axis, int index, Point* point, size_t w) {
                     point->coord[w] = index;
                     point->offset += index * axis.tiled.*stride;
                   })};
}

Patchwork WinogradPart::taps(const Dim& points, int64_t Dim::* stride) const {
  return {Axis({points}, stride, nullptr),
          {},
          {},
          elements(tile_.taps, [stride](const WinogradAxis& axis, int index, Point* point, size_t) {
            point->offset += axis.tap(index) * axis.taps.*stride;
          })};
}

Patchwork WinogradPart::patches_of_b(bool points_are_columns) const {
  if (!along_m()) return tiles(&Dim::stride_b);
  return taps(points_are_columns ? p_.n.front() : channels(), &Dim::stride_b);
}

Patchwork WinogradPart::results() const {
  return along_m() ? tiles(&Dim::stride_c) : taps(channels(), &Dim::stride_c);
}

WinogradJob::WinogradJob(const Part& part, const Operands& operands, const Chains& chains,
                         const ContractionKernels& kernels, int threads)
    : p_(part),
      winograd_(part),
      chains_(chains),
      kernels_(kernels),
      c_(operands.c + part.base_c),
      tile_(winograd_.tile()),
      positions_(tile_.positions()),
      c_g_(part.g, &Dim::stride_c, nullptr),
      results_(winograd_.results()),
      threads_(threads) {}

void WinogradJob::run_cell(CellArgs* cell, const Norms& row, const Norms& column, int64_t k,
                           int64_t* lengths) const {
  cell->chain = chain_pairs(row, column);
  kernels_.cell(*cell);
  if (chains_.lengths != nullptr)
    lengths[chain_index(cell->chain)] += cell->rows * int64_t{cell->narrow} * k;
}

void WinogradJob::scale(int32_t row, const int32_t* columns, int64_t count, float* totals) {
  for (int64_t i = 0; i < count; ++i) totals[i] = scale_once(totals[i], int64_t{row} + columns[i]);
}

void WinogradJob::lose(bool row, const char* columns, int64_t count, float* totals) {
  for (int64_t i = 0; i < count; ++i)
    if (row || columns[i] != 0) totals[i] = std::numeric_limits<float>::quiet_NaN();
}

void WinogradJob::report_lengths(int64_t g, int64_t* lengths) const {
  if (chains_.lengths == nullptr) return;
  for (int i = 0; i < kChainLengths; ++i) {
    chains_.lengths->add(p_, g, i, lengths[i]);
    lengths[i] = 0;
  }
}

int32_t transform_along(const PatchReader& reader, int64_t patch, int64_t first, int64_t count,
                        const NormedTransform& transform, const ContractionKernels& kernels,
                        PatchSpace* s, int16_t* out, int64_t position_stride, int32_t* exponents,
                        int64_t exponent_stride, bool* lost) {
  constexpr int64_t kValues = kBlock + 16;  // a distance as of spread()
  const int positions = transform.tile.positions();
  const int64_t padded = round_up(count, kColumnQuantum);
  float* const values = s->values.as<float>();
  s->from.resize(static_cast<size_t>(reader.elements()));
  s->scales.resize(s->from.size());
  const auto for_pieces = [&](auto f) {
    for (int64_t lane = first; lane < first + count;) {
      const auto piece = reader.piece(s->found.origin, lane, first + count, kBlock);
      f(lane, piece.end - lane);
      lane = piece.end;
    }
  };
  int32_t unit = kAbsent;
  for_pieces([&](int64_t lane, int64_t) {
    unit = std::max(unit, reader.unit(s->found, patch, 1, lane, lost));
  });
  for_pieces([&](int64_t lane, int64_t lanes) {
    reader.scale(s->found, patch, 1, lane, unit, s->from.data(), s->scales.data());
    kernels.transform_patch({transform.tile, transform.transform, s->from.data(), s->scales.data(),
                             1, static_cast<int>(lanes)},
                            values + (lane - first), kValues);
  });
  if (padded > count)
    for (int p = 0; p < positions; ++p)
      std::fill(values + p * kValues + count, values + p * kValues + padded, 0.0f);
  kernels.quantize_rows(values, kValues, transform.norms, positions, static_cast<int>(padded), out,
                        position_stride, exponents, exponent_stride);
  add_unit(unit, positions, 1, exponent_stride, exponents);
  return unit;
}

void transform_across(const PatchReader& reader, int64_t count, int64_t lane, int64_t lanes,
                      int32_t unit, const NormedTransform& transform,
                      const ContractionKernels& kernels, PatchSpace* s, const LanesOfWords& to) {
  s->from.resize(static_cast<size_t>(count * reader.elements()));
  s->scales.resize(s->from.size());
  reader.scale(s->found, 0, count, lane, unit, s->from.data(), s->scales.data());
  kernels.pack_patches({transform.tile, transform.transform, s->from.data(), s->scales.data(),
                        static_cast<int>(count), static_cast<int>(lanes)},
                       transform.norms, s->values.as<float>(), to.words, to.position_stride,
                       to.pair_stride, to.exponents, to.exponent_stride);
  add_unit(unit, transform.tile.positions(), lanes, to.exponent_stride, to.exponents);
}

void scales_below(const int32_t* exponents, const int32_t* bases, int64_t count, float* scales) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t above = exponents[i] - bases[i];
    const int32_t bits = above < -kMostBelowBase ? 0 : (above + 127) << 23;
    std::memcpy(&scales[i], &bits, sizeof bits);
  }
}

void add_unit(int32_t unit, int positions, int64_t count, int64_t stride, int32_t* exponents) {
  for (int p = 0; p < positions; ++p)
    for (int64_t i = 0; i < count; ++i) {
      int32_t& exponent = exponents[p * stride + i];
      exponent = exponent == kAbsent || unit == kAbsent ? kAbsent : unit + exponent;
    }
}

bool all_normal(int32_t row, const int32_t* columns, int64_t count) {
  int32_t least = 0, most = 0;
  if (count > 0) least = most = columns[0];
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, columns[i]);
    most = std::max(most, columns[i]);
  }
  return is_normal(row + least) && is_normal(row + most);
}

}  // namespace dfpjax
