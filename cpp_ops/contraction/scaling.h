// The final step of every output: y = ldexp(total, ea + eb) with one rounding.
#ifndef DFPJAX_CONTRACTION_SCALING_H_
#define DFPJAX_CONTRACTION_SCALING_H_

#include <cstdint>

#include "plan/index.h"
#include "plan/plan.h"

namespace dfpjax {

// total * 2^e, rounded once; NaN if e is at least kNotFiniteFrom.
float scale_once(float total, int64_t e);

class Scaling {
 public:
  Scaling(const Part& part, const int32_t* ea, const int32_t* eb);

  // True if every output is multiplied by factor(); else totals go through apply().
  bool is_factor() const { return is_factor_; }
  float factor() const { return factor_; }

  // Scales the totals of row (g, m), columns [low, high), at row[offsets[n - low]].
  void apply(int64_t g, int64_t m, int64_t low, int64_t high, const int64_t* offsets,
             float* row) const;

 private:
  const int32_t* ea_;
  const int32_t* eb_;
  Axis ea_g_, ea_m_, ea_n_, eb_g_, eb_n_;
  bool rows_share_ea_;  // the columns of a row share one exponent of A; lanes may not
  bool is_factor_;
  float factor_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_SCALING_H_
