// Packing of operands. Included as isa/common-inl.h describes.

#include "contraction/kernels/valid-inl.h"

// May write up to kSlack elements beyond the end. These are overwritten by later packing or are
// slack.
template <class S>
void copy(const int16_t* from, int n, int16_t* to) {
  constexpr int kWidth = 2 * S::kLanes;
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) S::store(to + i, S::load(from + i));
  if (i < n) S::copy_tail(from + i, n - i, to + i);
}

inline void fill_zero(int16_t* to, int n) {
  for (int i = 0; i < n; ++i) to[i] = 0;
}

template <class S>
inline __attribute__((always_inline)) void interleave(const int16_t* x, const int16_t* y, int n,
                                                      bool exact, int32_t* out) {
  int i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) S::store(out + i, S::pair_words(x + i, y + i));
  if (i < n) S::interleave_tail(x + i, y + i, n - i, exact, out + i);
}

template <class S>
void pack_rows(const int16_t* base, const Bounds& bounds, const Point* points, int rows,
               const Run* runs, int run_count, int16_t* out, int64_t stride) {
  const int64_t length =
      run_count == 0 ? 0 : runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  for (int r = 0; r < rows; ++r, out += stride) {
    const int16_t* const point = base + points[r].offset;
    const bool whole = inside(bounds, points[r], reach);
    for (int i = 0; i < run_count; ++i) {
      const Run& run = runs[i];
      int16_t* const to = out + run.start;
      if (whole) {
        copy<S>(point + run.offset, run.length, to);
        continue;
      }
      const Valid valid = valid_part(bounds, points[r], run);
      fill_zero(to, valid.low);
      copy<S>(point + run.offset + valid.low, valid.high - valid.low, to + valid.low);
      fill_zero(to + valid.high, run.length - valid.high);
    }
    fill_zero(out + length, static_cast<int>(stride - length));
  }
}

// Shifts mantissas right. May write up to kSlack elements beyond the end, as `copy` does.
template <class S>
void shift_right(const int16_t* from, int n, int shift, ShiftRounding rounding, int16_t* to) {
  constexpr int kWidth = 2 * S::kLanes;
  if (shift == 0) return copy<S>(from, n, to);
  if (shift >= 16) return fill_zero(to, n);
  int i = 0;
  if (rounding.thresholds == nullptr) {
    for (; i + kWidth <= n; i += kWidth)
      S::store(to + i, S::shift_to_nearest(S::load(from + i), shift));
    for (; i < n; ++i) {
      const int down = from[i] >> shift, rest = from[i] & ((1 << shift) - 1);
      to[i] = static_cast<int16_t>(down + (rest + (down & 1) > (1 << (shift - 1)) ? 1 : 0));
    }
    return;
  }
  for (; i + kWidth <= n; i += kWidth)
    S::store(to + i, S::shift_dithered(S::load(from + i), S::load(rounding.thresholds + i),
                                       rounding.other, shift));
  for (; i < n; ++i) {
    const int threshold = (rounding.thresholds[i] ^ rounding.other) >> (16 - shift);
    const int sum = from[i] + threshold;
    to[i] = static_cast<int16_t>((sum > INT16_MAX ? INT16_MAX : sum) >> shift);
  }
}

template <class S>
void pack_pieces(const Piece* pieces, int count, ShiftRounding rounding, int16_t* out) {
  for (int i = 0; i < count; ++i) {
    const Piece& piece = pieces[i];
    if (piece.from == nullptr) {
      fill_zero(out + piece.start, piece.length);
      continue;
    }
    ShiftRounding own = rounding;
    if (own.thresholds != nullptr) own.thresholds += piece.start;
    shift_right<S>(piece.from, piece.length, piece.shift, own, out + piece.start);
  }
}

// How many pairs of k to prefetch ahead. Operands without windows are read once per task, in pieces
// that the hardware prefetcher does not predict.
inline constexpr int kPrefetchPairs = 8;

inline void prefetch(const int16_t* from, int n) {
  for (int i = 0; i < n; i += 32) __builtin_prefetch(from + i);
}

template <class S, bool kShifted>
inline __attribute__((always_inline)) void pack_words(const int16_t* base, const Bounds& bounds,
                                                      const Point* points, int k, const Run* runs,
                                                      int run_count, const PairShifts& shifts,
                                                      const int16_t* zeros, int16_t* edge,
                                                      int32_t* out, int64_t stride, int padding) {
  const int64_t length = runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  for (int pair = 0; pair < k; pair += 2, out += stride) {
    const int count = k - pair < 2 ? 1 : 2;
    const bool whole =
        inside(bounds, points[pair], reach) && inside(bounds, points[pair + count - 1], reach);
    // Words after a run belong to a later run or pair and are overwritten. Words after the last
    // pair may not be.
    const bool exact = pair + 2 >= k;
    const int ahead = pair + kPrefetchPairs * 2;
    for (int i = 0; i < run_count; ++i) {
      const Run& run = runs[i];
      if (bounds.count == 0 && ahead + 1 < k) {
        prefetch(base + points[ahead].offset + run.offset, run.length);
        prefetch(base + points[ahead + 1].offset + run.offset, run.length);
      }
      const int16_t* source[2] = {zeros, zeros};
      const int8_t* shift = kShifted ? shifts.shifts + pair * run_count + i : nullptr;
      if (kShifted && (shift[0] != 0 || (count == 2 && shift[run_count] != 0))) {
        const int room = run.length + kSlack;
        for (int half = 0; half < count; ++half, shift += run_count) {
          const Point& point = points[pair + half];
          const Valid valid = whole ? Valid{0, run.length} : valid_part(bounds, point, run);
          if (*shift >= 16 || valid.low == valid.high) continue;
          int16_t* const shifted = edge + half * room;
          ShiftRounding rounding{nullptr, 0};
          if (shifts.lanes != nullptr)
            rounding = {
                shifts.lanes + (shifts.first_lane + run.start) % kThresholdLanes + valid.low,
                shifts.of_k[pair + half]};
          fill_zero(shifted, valid.low);
          shift_right<S>(base + point.offset + run.offset + valid.low, valid.high - valid.low,
                         *shift, rounding, shifted + valid.low);
          fill_zero(shifted + valid.high, run.length - valid.high);
          source[half] = shifted;
        }
        interleave<S>(source[0], source[1], run.length, exact, out + run.start);
        continue;
      }
      if (whole) {
        for (int half = 0; half < count; ++half)
          source[half] = base + points[pair + half].offset + run.offset;
        interleave<S>(source[0], source[1], run.length, exact, out + run.start);
        continue;
      }
      for (int half = 0; half < count; ++half) {
        const Point& point = points[pair + half];
        const Valid valid = valid_part(bounds, point, run);
        if (valid.low == valid.high) continue;
        source[half] = base + point.offset + run.offset;
        if (valid.low == 0 && valid.high == run.length) continue;
        int16_t* padded = edge + half * run.length;
        fill_zero(padded, valid.low);
        copy<S>(source[half] + valid.low, valid.high - valid.low, padded + valid.low);
        fill_zero(padded + valid.high, run.length - valid.high);
        source[half] = padded;
      }
      interleave<S>(source[0], source[1], run.length, exact, out + run.start);
    }
    for (int i = 0; i < padding; ++i) out[length + i] = 0;
  }
}

template <class S>
void pack_pairs(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                const Run* runs, int run_count, const int16_t* zeros, int16_t* edge, int32_t* out,
                int64_t stride, int padding) {
  pack_words<S, false>(base, bounds, points, k, runs, run_count, {}, zeros, edge, out, stride,
                       padding);
}

template <class S>
void pack_shifted_pairs(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                        const Run* runs, int run_count, const PairShifts& shifts,
                        const int16_t* zeros, int16_t* edge, int32_t* out, int64_t stride,
                        int padding) {
  pack_words<S, true>(base, bounds, points, k, runs, run_count, shifts, zeros, edge, out, stride,
                      padding);
}

template <class S>
void transpose(const int16_t* rows, int64_t stride, int pairs, int32_t* out, int64_t out_stride) {
  for (int column = 0; column < kColumnQuantum; column += S::kLanes)
    for (int k = 0; k < pairs; k += S::kLanes)
      S::transpose(rows + column * stride + 2 * k, stride, out + k * out_stride + column,
                   out_stride);
}
