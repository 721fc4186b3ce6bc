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

// Packs one row. `whole` says that all elements exist.
template <class S>
inline void pack_row(const int16_t* base, const Bounds& bounds, const Point& row, bool whole,
                     const Run* runs, int run_count, int16_t* out) {
  const int16_t* const point = base + row.offset;
  for (int i = 0; i < run_count; ++i) {
    const Run& run = runs[i];
    int16_t* const to = out + run.start;
    if (whole) {
      copy<S>(point + run.offset, run.length, to);
      continue;
    }
    const Valid valid = valid_part(bounds, row, run);
    fill_zero(to, valid.low);
    copy<S>(point + run.offset + valid.low, valid.high - valid.low, to + valid.low);
    fill_zero(to + valid.high, run.length - valid.high);
  }
}

template <class S>
void pack_rows(const int16_t* base, const Bounds& bounds, const Point* points, int rows,
               const Run* runs, int run_count, int16_t* out, int64_t stride) {
  const int64_t length =
      run_count == 0 ? 0 : runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  for (int r = 0; r < rows; ++r, out += stride) {
    pack_row<S>(base, bounds, points[r], inside(bounds, points[r], reach), runs, run_count, out);
    fill_zero(out + length, static_cast<int>(stride - length));
  }
}

// A mantissa, shifted right by 1 to 15 bits and rounded.
inline int16_t shifted_to_nearest(int16_t x, int shift) {
  const int down = x >> shift, rest = x & ((1 << shift) - 1);
  return static_cast<int16_t>(down + (rest + (down & 1) > (1 << (shift - 1)) ? 1 : 0));
}
inline int16_t shifted_dithered(int16_t x, int threshold, int shift) {
  const int sum = x + (threshold >> (16 - shift));
  return static_cast<int16_t>((sum > INT16_MAX ? INT16_MAX : sum) >> shift);
}

// Shifts mantissas with consecutive k right. `of_k` are the thresholds of these k, or null. May
// write up to kSlack elements beyond the end, as `copy` does.
template <class S>
inline void shift_along_k(const int16_t* from, int n, int shift, const uint16_t* of_k,
                          uint16_t of_lane, int16_t* to) {
  constexpr int kWidth = 2 * S::kLanes;
  if (shift == 0) return copy<S>(from, n, to);
  if (shift >= kNegligibleShift) return fill_zero(to, n);
  int i = 0;
  if (of_k == nullptr) {
    for (; i + kWidth <= n; i += kWidth)
      S::store(to + i, S::shift_to_nearest(S::load(from + i), shift));
    for (; i < n; ++i) to[i] = shifted_to_nearest(from[i], shift);
    return;
  }
  for (; i + kWidth <= n; i += kWidth)
    S::store(to + i, S::shift_dithered(S::load(from + i), S::load(of_k + i), of_lane, shift));
  for (; i < n; ++i) to[i] = shifted_dithered(from[i], of_k[i] ^ of_lane, shift);
}

template <class S>
void pack_shifted_rows(const int16_t* base, const Bounds& bounds, const Point* points, int rows,
                       const Run* runs, int run_count, const CutRuns& cut,
                       const Dithering& dithering, int16_t* out, int64_t stride) {
  const int64_t length =
      run_count == 0 ? 0 : runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  for (int r = 0; r < rows; ++r, out += stride) {
    const int16_t* const point = base + points[r].offset;
    const bool whole = inside(bounds, points[r], reach);
    int any = 0;
    for (int i = 0; i < cut.count; ++i) any |= cut.shifts[i * cut.stride + r];
    if (any == 0) {
      pack_row<S>(base, bounds, points[r], whole, runs, run_count, out);
      fill_zero(out + length, static_cast<int>(stride - length));
      continue;
    }
    const int64_t lane = (dithering.first_lane + r) % kThresholdLanes;
    const uint16_t of_lane = kThresholds.of_lane[static_cast<size_t>(lane)];
    for (int i = 0; i < cut.count; ++i) {
      const Run& run = cut.runs[i];
      const int shift = cut.shifts[i * cut.stride + r];
      Valid valid{0, run.length};
      if (!whole && shift < kNegligibleShift) valid = valid_part(bounds, points[r], run);
      const int64_t start = run.start + valid.low;
      const uint16_t* of_k = dithering.of_k == nullptr ? nullptr : dithering.of_k + start;
      fill_zero(out + run.start, valid.low);
      shift_along_k<S>(point + run.offset + valid.low, valid.high - valid.low, shift, of_k, of_lane,
                       out + start);
      fill_zero(out + run.start + valid.high, run.length - valid.high);
    }
    fill_zero(out + length, static_cast<int>(stride - length));
  }
}

// How many pairs of k to prefetch ahead. Operands without windows are read once per task, in pieces
// that the hardware prefetcher does not predict.
inline constexpr int kPrefetchPairs = 8;

inline void prefetch(const int16_t* from, int n) {
  for (int i = 0; i < n; i += 32) __builtin_prefetch(from + i);
}

// What packing words of two k has for all pairs.
struct Pairs {
  const int16_t* base;
  const Bounds& bounds;
  const Point* points;
  int k;
  const int16_t* zeros;
  int16_t* edge;
};

// Finds the elements of a run at point `k`, in `edge` if not all of them exist.
template <class S>
inline const int16_t* elements(const Pairs& p, int k, const Run& run, int16_t* edge) {
  const Point& point = p.points[k];
  const Valid valid = valid_part(p.bounds, point, run);
  if (valid.low == valid.high) return p.zeros;
  const int16_t* const from = p.base + point.offset + run.offset;
  if (valid.low == 0 && valid.high == run.length) return from;
  fill_zero(edge, valid.low);
  copy<S>(from + valid.low, valid.high - valid.low, edge + valid.low);
  fill_zero(edge + valid.high, run.length - valid.high);
  return edge;
}

inline void prefetch_ahead(const Pairs& p, int pair, const Run& run) {
  const int ahead = pair + kPrefetchPairs * 2;
  if (p.bounds.count > 0 || ahead + 1 >= p.k) return;
  prefetch(p.base + p.points[ahead].offset + run.offset, run.length);
  prefetch(p.base + p.points[ahead + 1].offset + run.offset, run.length);
}

// Words after a run belong to a later run or pair and are overwritten. Words after the last pair
// may not be, so they are `exact`.
template <class S>
inline __attribute__((always_inline)) void pack_pair(const Pairs& p, int pair, const Reach& reach,
                                                     const Run* runs, int run_count, int32_t* out) {
  const int count = p.k - pair < 2 ? 1 : 2;
  const bool whole = inside(p.bounds, p.points[pair], reach) &&
                     inside(p.bounds, p.points[pair + count - 1], reach);
  const bool exact = pair + 2 >= p.k;
  for (int i = 0; i < run_count; ++i) {
    const Run& run = runs[i];
    prefetch_ahead(p, pair, run);
    const int16_t* source[2] = {p.zeros, p.zeros};
    for (int half = 0; half < count; ++half)
      source[half] = whole ? p.base + p.points[pair + half].offset + run.offset
                           : elements<S>(p, pair + half, run, p.edge + half * run.length);
    interleave<S>(source[0], source[1], run.length, exact, out + run.start);
  }
}

template <class S>
void pack_pairs(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                const Run* runs, int run_count, const int16_t* zeros, int16_t* edge, int32_t* out,
                int64_t stride, int padding) {
  const int64_t length = runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  const Pairs pairs{base, bounds, points, k, zeros, edge};
  for (int pair = 0; pair < k; pair += 2, out += stride) {
    pack_pair<S>(pairs, pair, reach, runs, run_count, out);
    for (int i = 0; i < padding; ++i) out[length + i] = 0;
  }
}

// Interleaves mantissas with two consecutive k, shifted right by up to 15 bits each.
template <class S>
inline __attribute__((always_inline)) void interleave_shifted(const int16_t* x, const int16_t* y,
                                                              int n, int shift_x, int shift_y,
                                                              const uint16_t* of_k, int64_t lane,
                                                              bool exact, int32_t* out) {
  int i = 0;
  if (of_k == nullptr) {
    for (; i + S::kLanes <= n; i += S::kLanes)
      S::store(out + i, S::pair_to_nearest(x + i, y + i, shift_x, shift_y));
  } else {
    for (; i + S::kLanes <= n; i += S::kLanes)
      S::store(out + i, S::pair_dithered(x + i, y + i, shift_x, shift_y, of_k[0], of_k[1],
                                         static_cast<size_t>(lane + i)));
  }
  if (i == n) return;
  const auto one = [&](int16_t value, int shift, int half, int at) {
    if (shift == 0) return value;
    if (of_k == nullptr) return shifted_to_nearest(value, shift);
    return shifted_dithered(value, of_k[half] ^ kThresholds.of_lane[static_cast<size_t>(lane + at)],
                            shift);
  };
  int16_t rest[2][S::kLanes + kSlack];
  for (int j = 0; i + j < n; ++j) {
    rest[0][j] = one(x[i + j], shift_x, 0, i + j);
    rest[1][j] = one(y[i + j], shift_y, 1, i + j);
  }
  S::interleave_tail(rest[0], rest[1], n - i, exact, out + i);
}

template <class S>
void pack_shifted_pairs(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                        const Run* runs, int run_count, const CutRuns& cut,
                        const Dithering& dithering, const int16_t* zeros, int16_t* edge,
                        int32_t* out, int64_t stride, int padding) {
  const int64_t length = runs[run_count - 1].start + runs[run_count - 1].length;
  const Reach reach = reach_of(bounds, runs, run_count);
  const Pairs pairs{base, bounds, points, k, zeros, edge};
  int8_t any[kBlock] = {};
  for (int i = 0; i < cut.count; ++i)
    for (int j = 0; j < k; ++j) any[j] |= cut.shifts[i * cut.stride + j];
  for (int pair = 0; pair < k; pair += 2, out += stride) {
    for (int i = 0; i < padding; ++i) out[length + i] = 0;
    const bool both = pair + 1 < k;
    if ((any[pair] | (both ? any[pair + 1] : 0)) == 0) {
      pack_pair<S>(pairs, pair, reach, runs, run_count, out);
      continue;
    }
    const uint16_t* of_k = dithering.of_k == nullptr ? nullptr : dithering.of_k + pair;
    const bool exact = pair + 2 >= k;
    const bool whole = inside(bounds, points[pair], reach) &&
                       inside(bounds, points[both ? pair + 1 : pair], reach);
    const int16_t* const first = base + points[pair].offset;
    const int16_t* const second = base + points[both ? pair + 1 : pair].offset;
    for (int i = 0; i < cut.count; ++i) {
      const Run& run = cut.runs[i];
      prefetch_ahead(pairs, pair, run);
      const int8_t* const wanted = cut.shifts + i * cut.stride + pair;
      const int shift_x = wanted[0], shift_y = both ? wanted[1] : kNegligibleShift;
      const int16_t *x = first + run.offset, *y = second + run.offset;
      if (!whole) {
        if (shift_x < kNegligibleShift) x = elements<S>(pairs, pair, run, edge);
        if (shift_y < kNegligibleShift) y = elements<S>(pairs, pair + 1, run, edge + run.length);
      }
      // Zeros need no shift.
      x = shift_x < kNegligibleShift ? x : zeros;
      y = shift_y < kNegligibleShift ? y : zeros;
      static_assert(kNegligibleShift == 16);
      if (((shift_x | shift_y) & 15) == 0)
        interleave<S>(x, y, run.length, exact, out + run.start);
      else
        interleave_shifted<S>(x, y, run.length, shift_x & 15, shift_y & 15, of_k,
                              (dithering.first_lane + run.start) % kThresholdLanes, exact,
                              out + run.start);
    }
  }
}

template <class S>
void transpose(const int16_t* rows, int64_t stride, int pairs, int32_t* out, int64_t out_stride) {
  for (int column = 0; column < kColumnQuantum; column += S::kLanes)
    for (int k = 0; k < pairs; k += S::kLanes)
      S::transpose(rows + column * stride + 2 * k, stride, out + k * out_stride + column,
                   out_stride);
}
