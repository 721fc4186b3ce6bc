// Parts of the Winograd modes: F(2, 3), F(4, 3) or F(2, 5) along one or two axes.
//
// Operands are transformed patch by patch, and each position of the transformed tiles is a product
// of matrices by itself, with new mantissas and exponents: one exponent for each row of A, and for
// each column of B, in a block of k. dfpjax/numbers/contraction/winograd.py defines the same in
// plain JAX.
#ifndef DFPJAX_CONTRACTION_WINOGRAD_H_
#define DFPJAX_CONTRACTION_WINOGRAD_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "contraction/patches.h"
#include "plan/index.h"
#include "plan/plan.h"
#include "runtime/scratch.h"

namespace dfpjax {

// What transformed products are multiplied by: 1 / (n_y n_x), where n is the product of a point's
// differences from the other ones. The quantization of B includes it.
const float* normalization(const WinogradTile& tile);
extern const float kOnes[kMostPositions];  // that of A

// A transformed axis.
struct WinogradAxis {
  Dim tiled, taps;
  int64_t tiles;
  int64_t origin;  // the coordinate of the first element
  bool reversed;   // the taps are read in reverse order
  int64_t tap(int64_t index) const { return reversed ? taps.extent - 1 - index : index; }
};

// The operands of a part as patches.
class WinogradPart {
 public:
  explicit WinogradPart(const Part& part);

  const Part& part() const { return p_; }
  bool along_m() const { return p_.mode == Mode::kWinogradAlongM; }
  const WinogradTile& tile() const { return tile_; }
  Dim channels() const;  // k's, or m's if the tiles lie along k
  // The patches of A, whose lanes are channels.
  Patchwork patches_of_a() const;
  // The tiles or taps of B. If the points are the columns, lanes are channels.
  Patchwork patches_of_b(bool points_are_columns) const;
  // The results of each row.
  Patchwork results() const;

 private:
  // The loops that have the tiles, each step a whole tile, in the direction in which A is read if
  // `directed`.
  std::vector<Dim> tiled_dims(bool directed) const;
  // Elements of so many along each axis: move(axis, index, element, number of the axis) adds what
  // an index along an axis does.
  template <class F>
  std::vector<Point> elements(int extent, F move) const;
  // The elements of tiles, and taps, where a tensor has these strides.
  Patchwork tiles(int64_t Dim::* stride) const;
  Patchwork taps(const Dim& points, int64_t Dim::* stride) const;

  const Part& p_;
  WinogradTile tile_;
  std::vector<WinogradAxis> axes_;
};

// A transform, and what its results are multiplied by.
struct NormedTransform {
  WinogradTile tile;
  Transform transform;
  const float* norms;
};
// Transforms channels [lane, lane + count) of one of the patches that were found, and quantizes
// them with an exponent for each position. Writes the mantissas, up to a multiple of
// kColumnQuantum. Returns the unit; sets *lost if an element is not finite.
int32_t transform_along(const PatchReader& reader, int64_t patch, int64_t lane, int64_t count,
                        const NormedTransform& transform, const ContractionKernels& kernels,
                        PatchSpace* space, int16_t* out, int64_t position_stride,
                        int32_t* exponents, int64_t exponent_stride, bool* lost);

// The scales 2^(exponent - base), or 0 if this is more than kMostBelowBase below.
void scales_below(const int32_t* exponents, const int32_t* bases, int64_t count, float* scales);
// Where words go: lane i of words k and k + 1 at position p to words[p * position_stride + k / 2 *
// pair_stride + i], its exponent to exponents[p * exponent_stride + i].
struct LanesOfWords {
  int32_t* words;
  int64_t position_stride, pair_stride;
  int32_t* exponents;
  int64_t exponent_stride;
};
// Transforms lanes [lane, lane + lanes) of the first `count` patches that were found, all of one
// piece with this unit, and quantizes each lane with an exponent for each position.
void transform_across(const PatchReader& reader, int64_t count, int64_t lane, int64_t lanes,
                      int32_t unit, const NormedTransform& transform,
                      const ContractionKernels& kernels, PatchSpace* space, const LanesOfWords& to);

// Adds the unit of mantissas to their exponents.
void add_unit(int32_t unit, int positions, int64_t count, int64_t stride, int32_t* exponents);
// Distances between positions, in words, that do not fall on the same lines of the first cache.
inline int64_t spread(int64_t words) { return words + 16; }

// Whether 2^(row + column) is normal for all columns.
bool all_normal(int32_t row, const int32_t* columns, int64_t count);

// What the jobs of both modes have in common.
class WinogradJob : public Job {
 protected:
  WinogradJob(const Part& part, const Operands& operands, const Chains& chains,
              const ContractionKernels& kernels, int threads);
  // Runs a cell with the chains that these norms certify. `k` is its number of products, which are
  // counted by length.
  void run_cell(CellArgs* cell, const Norms& row, const Norms& column, int64_t k,
                int64_t* lengths) const;
  void report_lengths(int64_t g, int64_t* lengths) const;
  // Multiplies totals by 2^(row + column).
  static void scale(int32_t row, const int32_t* columns, int64_t count, float* totals);
  // Makes totals of lost rows and columns NaN.
  static void lose(bool row, const char* columns, int64_t count, float* totals);

  const Part& p_;
  const WinogradPart winograd_;
  const Chains chains_;
  const ContractionKernels& kernels_;
  float* const c_;
  const WinogradTile tile_;
  const int64_t positions_;
  const Axis c_g_;
  const Patchwork results_;
  const int threads_;
};

std::unique_ptr<Job> make_winograd_along_m(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads, OperandReuse& reuse);
std::unique_ptr<Job> make_winograd_along_k(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_WINOGRAD_H_
