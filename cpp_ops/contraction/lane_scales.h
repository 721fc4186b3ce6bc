// Lanes of operands in blocks: what each product is multiplied by before it is added.
//
// Nothing is aligned: a product has the sum of its operands' exponents, and a power of two brings
// it to the units of its running sum. dfpjax/numbers/contraction/lanes.py defines the same in plain
// JAX.
#ifndef DFPJAX_CONTRACTION_LANE_SCALES_H_
#define DFPJAX_CONTRACTION_LANE_SCALES_H_

#include <cstdint>
#include <vector>

#include "contraction/contract.h"
#include "contraction/exponents.h"
#include "contraction/kernels/table.h"
#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

class LaneScales {
 public:
  // Neighbouring lanes that share all exponents.
  struct Piece {
    int64_t lane, lanes;
  };
  // A range of lanes in a block of k of one split.
  struct Block {
    int64_t g, split;  // g of the part without lanes
    int64_t lane;      // the first of a range
    int64_t k0;
    int k;
  };
  // The exponents and scales of one thread.
  class Space {
    friend class LaneScales;
    std::vector<Point> points, runs_at;  // what is neighbouring in the tables below, and the rest
    std::vector<Run> runs;
    Exponents::Space found;
    std::vector<int32_t> of_b, exponents;  // of B [piece][k]; of products [piece][rest][point]
    std::vector<float> scales;             // likewise
    std::vector<bool> lost_b, lost;        // [piece], [piece][row]
    std::vector<int32_t> tops, units;      // [row]
    std::vector<float> before;             // [piece][row]
    int64_t stride = 0;                    // between the points of two of the rest
    int rows = 0;
  };
  // For a row and a piece: the scale of k is scales[k * step].
  struct Row {
    const float* scales;
    int64_t step;
    float before;  // what the running sum is to be multiplied by first
    bool lost;     // whether it is NaN
  };

  // `outer` is the part without its lanes. Pieces do not cross multiples of `range` lanes.
  LaneScales(const Part& part, const Part& outer, int64_t range, const Operands& operands,
             const ContractionKernels& kernels, int64_t splits);

  // All pieces; and those of the range that begins with this lane, [first_piece, end_piece).
  const std::vector<Piece>& pieces() const { return pieces_; }
  size_t first_piece(int64_t lane) const { return firsts_[static_cast<size_t>(lane / range_)]; }
  size_t end_piece(int64_t lane) const { return firsts_[static_cast<size_t>(lane / range_) + 1]; }

  // How many rows to scale at a time, at most `most`.
  int64_t rows_at_once(const Block& block, int64_t most) const;
  // Finds the exponents of B.
  void start(const Block& block, Space* space) const;
  // Finds the scales of `count` rows from row m on, and moves the bases of their running sums.
  void scale(const Block& block, int64_t m, int count, Space* space);
  // Row m + i of these.
  Row row(const Block& block, int i, size_t piece, const Space& space) const;

  // The base of a running sum; kUnset if it is empty.
  int32_t base(int64_t split, int64_t g, int64_t m, size_t piece) const {
    return bases_[index(split, g, m, piece)];
  }

 private:
  size_t index(int64_t split, int64_t g, int64_t m, size_t piece) const {
    return static_cast<size_t>((split * outer_g_ + g) * m_ + m) * pieces_.size() + piece;
  }
  // The pieces at a point of the rest, as runs.
  void set_runs(const Block& block, const Point& at, Space* space) const;
  void look_up_a(const Block& block, int64_t m, int count, Space* space) const;
  void take_lost(const Block& block, Space* space) const;

  const ContractionKernels& kernels_;
  const int64_t range_, outer_g_, m_;
  // Whether tables have the rows of one k as neighbours, rather than the k of one row.
  const bool rows_are_points_;
  const Bounds bounds_;
  const Point origin_;  // of A
  const Axis a_g_, a_m_, a_k_, b_g_, b_k_;
  const Exponents a_, b_;
  Exponents::Cut cut_a_, cut_b_;
  std::vector<Piece> pieces_;
  std::vector<size_t> firsts_;  // of each range, and the number of pieces
  std::vector<int32_t> bases_;  // [split][g][m][piece]
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_LANE_SCALES_H_
