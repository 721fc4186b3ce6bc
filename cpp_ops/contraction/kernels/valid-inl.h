// The parts of runs that are not padding. Included as isa/common-inl.h describes.

// The elements [low, high) of a run that exist at a point.
struct Valid {
  int low, high;
};

inline int64_t divide_up(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

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
    const int64_t first_unit = divide_up(-int64_t{coord}, run.coef);
    const int64_t end_unit = divide_up(int64_t{bounds.size[w]} - coord, run.coef);
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
