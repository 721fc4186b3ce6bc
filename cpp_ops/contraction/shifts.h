// The shifts that align the mantissas of packed rows and of pairs of k.
#ifndef DFPJAX_CONTRACTION_SHIFTS_H_
#define DFPJAX_CONTRACTION_SHIFTS_H_

#include <algorithm>
#include <cstdint>

#include "contraction/alignment.h"
#include "contraction/exponents.h"
#include "contraction/kernels/table.h"

namespace dfpjax {

inline int segment_of(const Run& run) { return static_cast<int>(run.start / kSegment); }

// The common exponents of a packed row.
inline SegmentExponents exponents_of(const Piece* pieces, int count) {
  ExponentRange range;
  for (int i = 0; i < count; ++i) range.add(pieces[i].start / kSegment, pieces[i].exponent);
  return range.exponents();
}

// Returns whether any piece is shifted.
inline bool set_shifts(const SegmentExponents& common, Piece* pieces, int count) {
  bool any = false;
  for (int i = 0; i < count; ++i) {
    Piece& piece = pieces[i];
    const int32_t to = common.at[static_cast<size_t>(piece.start / kSegment)];
    piece.shift = static_cast<int16_t>(shift_to(to, piece.exponent));
    any |= piece.shift != 0;
  }
  return any;
}

// Calls add(k, r) for the exponents [k][runs] of runs [first, last), but not for a k whose
// exponents are those of the k before in the same segment. Blocks have several rows, so most are.
template <class F>
void for_changes(const int32_t* exponents, int k, int runs, int first, int last, F add) {
  for (int i = 0; i < k; ++i, exponents += runs) {
    if (i % kSegment != 0 &&
        std::equal(exponents + first, exponents + last, exponents + first - runs))
      continue;
    for (int r = first; r < last; ++r) add(i, r);
  }
}

// Writes the shifts of runs [first, last) for the same arrays. `common(r)` are the exponents that
// run r takes.
template <class F>
void set_shifts(const int32_t* exponents, int k, int runs, int first, int last, F common,
                int8_t* shifts) {
  for (int i = 0; i < k; ++i, exponents += runs, shifts += runs) {
    if (i % kSegment != 0 &&
        std::equal(exponents + first, exponents + last, exponents + first - runs)) {
      std::copy(shifts + first - runs, shifts + last - runs, shifts + first);
      continue;
    }
    for (int r = first; r < last; ++r)
      shifts[r] = static_cast<int8_t>(
          shift_to(common(r).at[static_cast<size_t>(i / kSegment)], exponents[r]));
  }
}

// The rounding of operand 0, A, or 1, B.
inline Dithering dithering_of(const Exponents& exponents, size_t operand, int64_t first_lane) {
  return {exponents.dithered() ? kThresholds.of_k[operand].data() : nullptr, first_lane};
}

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_SHIFTS_H_
