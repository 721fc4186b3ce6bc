// Packing of operands. Included as isa/common-inl.h describes.

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

// The elements [low, high) of a run that exist at a point.
struct Valid {
  int low, high;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

inline Valid valid_part(const Bounds& bounds, const Point& point, const Run& run) {
  int64_t low = 0, high = run.length;
  for (int w = 0; w < bounds.count; ++w) {
    const int32_t coord = point.coord[w] + run.coord[w];
    if (w != run.window) {
      if (static_cast<uint32_t>(coord) >= static_cast<uint32_t>(bounds.size[w])) return {0, 0};
      continue;
    }
    // Unit t of the run exists if 0 <= coord + coef * t < size.
    if (coord >= 0 && coord + run.coef * run.last < bounds.size[w]) continue;
    const int64_t first_unit = ceil_div(-int64_t{coord}, run.coef);
    const int64_t end_unit = ceil_div(int64_t{bounds.size[w]} - coord, run.coef);
    const int64_t from = first_unit * run.unit - run.phase, to = end_unit * run.unit - run.phase;
    if (from > low) low = from;
    if (to < high) high = to;
    if (low >= high) return {0, 0};
  }
  return {static_cast<int>(low), static_cast<int>(high)};
}

// For each window, the least and the greatest difference between the coordinates of some runs and
// the coordinates of their point.
struct Reach {
  int32_t low[kMaxWindows], high[kMaxWindows];
};

inline Reach reach_of(const Bounds& bounds, const Run* runs, int run_count) {
  Reach reach{};
  for (int w = 0; w < bounds.count; ++w)
    for (int i = 0; i < run_count; ++i) {
      const int32_t low = runs[i].coord[w];
      const auto last = static_cast<int32_t>(runs[i].last);
      const int32_t high = w == runs[i].window ? low + runs[i].coef * last : low;
      if (i == 0 || low < reach.low[w]) reach.low[w] = low;
      if (i == 0 || high > reach.high[w]) reach.high[w] = high;
    }
  return reach;
}

// Whether all elements of the runs exist at a point.
inline bool inside(const Bounds& bounds, const Point& point, const Reach& reach) {
  for (int w = 0; w < bounds.count; ++w)
    if (point.coord[w] + reach.low[w] < 0 || point.coord[w] + reach.high[w] >= bounds.size[w])
      return false;
  return true;
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

// How many pairs of k to prefetch ahead. Operands without windows are read once per task, in pieces
// that the hardware prefetcher does not predict.
inline constexpr int kPrefetchPairs = 8;

inline void prefetch(const int16_t* from, int n) {
  for (int i = 0; i < n; i += 32) __builtin_prefetch(from + i);
}

template <class S>
void pack_pairs(const int16_t* base, const Bounds& bounds, const Point* points, int k,
                const Run* runs, int run_count, const int16_t* zeros, int16_t* edge, int32_t* out,
                int64_t stride, int padding) {
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
void transpose(const int16_t* rows, int64_t stride, int pairs, int32_t* out, int64_t out_stride) {
  for (int column = 0; column < kColumnQuantum; column += S::kLanes)
    for (int k = 0; k < pairs; k += S::kLanes)
      S::transpose(rows + column * stride + 2 * k, stride, out + k * out_stride + column,
                   out_stride);
}
