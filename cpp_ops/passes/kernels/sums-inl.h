// Reductions over all axes but the last, in one pass. Included as isa/common-inl.h describes. The
// order of additions is the same on every path: lanes are channels, rows are added in float32
// within a block, and blocks are added in float64.

inline constexpr int64_t kRowsInFloat = 32;

// Sums go row by row, as memory likes it, and through so many rows at a time.
inline constexpr int kRowsAtOnce = 4;

// Float32 sums of so many channels stay in the first-level cache.
inline constexpr int64_t kMostChannels = 1024;

struct FloatSums {
  alignas(kVectorBytes) float first[kMostChannels], second[kMostChannels];

  void clear(int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) first[c] = second[c] = 0;
  }
  void add_to(double* to_first, double* to_second, int64_t channels) const {
    for (int64_t c = 0; c < channels; ++c) {
      to_first[c] += static_cast<double>(first[c]);
      to_second[c] += static_cast<double>(second[c]);
    }
  }
};

// Calls some(row, channel), of kRowsAtOnce rows, or one(row, channel) for all rows and vectors of
// channels, and column(channel), of all rows, for the channels that do not fill a vector.
template <class Some, class One, class Column>
inline void row_by_row(int64_t rows, int64_t channels, Some some, One one, Column column) {
  const int64_t vectors = channels / kFloats * kFloats;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce)
    for (int64_t c = 0; c < vectors; c += kFloats) some(r, c);
  for (; r < rows; ++r)
    for (int64_t c = 0; c < vectors; c += kFloats) one(r, c);
  for (int64_t c = vectors; c < channels; ++c) column(c);
}

// Handles a vector of channels.
template <class V>
inline void moments_of(const float* x, int64_t rows, int64_t stride, float* sums, float* squares,
                       float* low, float* high) {
  V sum = load_as<V>(sums), square = load_as<V>(squares);
  V least = load_as<V>(low), most = load_as<V>(high);
  for (int64_t r = 0; r < rows; ++r) {
    const V a = load_as<V>(x + r * stride);
    sum += a;
    square += a * a;
    least = a < least ? a : least;
    most = a > most ? a : most;
  }
  store_as(sums, sum);
  store_as(squares, square);
  store_as(low, least);
  store_as(high, most);
}

void moments(const float* x, int64_t rows, int64_t channels, double* sums, double* squares,
             float* low, float* high) {
  FloatSums in_float;
  for (int64_t first = 0; first < channels; first += kMostChannels) {
    const int64_t count = channels - first < kMostChannels ? channels - first : kMostChannels;
    for (int64_t start = 0; start < rows; start += kRowsInFloat) {
      const int64_t left = rows - start < kRowsInFloat ? rows - start : kRowsInFloat;
      const auto take = [&](auto kernel, int64_t r, int64_t of_rows, int64_t c) {
        kernel(x + (start + r) * channels + first + c, of_rows, channels, in_float.first + c,
               in_float.second + c, low + first + c, high + first + c);
      };
      in_float.clear(count);
      row_by_row(
          left, count, [&](int64_t r, int64_t c) { take(moments_of<Floats>, r, kRowsAtOnce, c); },
          [&](int64_t r, int64_t c) { take(moments_of<Floats>, r, 1, c); },
          [&](int64_t c) { take(moments_of<float>, 0, left, c); });
      in_float.add_to(sums + first, squares + first, count);
    }
  }
}

template <class V, bool kRectified>
inline void paired_of(const PairedRows& at, int64_t rows, int64_t stride, float* sums,
                      float* products) {
  V sum = load_as<V>(sums), product = load_as<V>(products);
  const V middle = load_as<V>(at.centre);
  V scale{}, shift{};
  if constexpr (kRectified) {
    scale = load_as<V>(at.scale);
    shift = load_as<V>(at.shift);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const V centred = load_as<V>(at.x + r * stride) - middle;
    V a = load_as<V>(at.g + r * stride);
    if constexpr (kRectified) a = fused(centred, scale, shift) > V{} ? a : V{};
    sum += a;
    product += a * centred;
  }
  store_as(sums, sum);
  store_as(products, product);
}

template <bool kRectified>
inline void paired_rows(const PairedRows& all, int64_t rows, int64_t channels) {
  FloatSums in_float;
  for (int64_t first = 0; first < channels; first += kMostChannels) {
    const int64_t count = channels - first < kMostChannels ? channels - first : kMostChannels;
    PairedRows part = all.from(first);
    for (int64_t start = 0; start < rows; start += kRowsInFloat) {
      const int64_t left = rows - start < kRowsInFloat ? rows - start : kRowsInFloat;
      const auto take = [&](auto kernel, int64_t r, int64_t of_rows, int64_t c) {
        PairedRows at = part.from(c);
        at.g += r * channels;
        at.x += r * channels;
        kernel(at, of_rows, channels, in_float.first + c, in_float.second + c);
      };
      in_float.clear(count);
      row_by_row(
          left, count,
          [&](int64_t r, int64_t c) { take(paired_of<Floats, kRectified>, r, kRowsAtOnce, c); },
          [&](int64_t r, int64_t c) { take(paired_of<Floats, kRectified>, r, 1, c); },
          [&](int64_t c) { take(paired_of<float, kRectified>, 0, left, c); });
      in_float.add_to(part.sums, part.products, count);
      part.g += kRowsInFloat * channels;
      part.x += kRowsInFloat * channels;
    }
  }
}

void paired_sums(const PairedRows& at, int64_t rows, int64_t channels) {
  if (at.scale != nullptr)
    paired_rows<true>(at, rows, channels);
  else
    paired_rows<false>(at, rows, channels);
}

template <class V>
inline void masked_of(const MaskedRows& at, int64_t rows, float* sums) {
  V sum = load_as<V>(sums);
  for (int64_t r = 0; r < rows; ++r) {
    const V x = load_as<V>(at.x + r * at.stride);
    sum += load_truth<V>(at.positive + r * at.stride) ? x : V{};
  }
  store_as(sums, sum);
}

void masked_sums(const MaskedRows& all, int64_t rows, int64_t channels, double* sums) {
  FloatSums in_float;
  for (int64_t first = 0; first < channels; first += kMostChannels) {
    const int64_t count = channels - first < kMostChannels ? channels - first : kMostChannels;
    for (int64_t start = 0; start < rows; start += kRowsInFloat) {
      const int64_t left = rows - start < kRowsInFloat ? rows - start : kRowsInFloat;
      const auto take = [&](auto kernel, int64_t r, int64_t of_rows, int64_t c) {
        kernel(all.from(start + r, first + c), of_rows, in_float.first + c);
      };
      in_float.clear(count);
      row_by_row(
          left, count, [&](int64_t r, int64_t c) { take(masked_of<Floats>, r, kRowsAtOnce, c); },
          [&](int64_t r, int64_t c) { take(masked_of<Floats>, r, 1, c); },
          [&](int64_t c) { take(masked_of<float>, 0, left, c); });
      for (int64_t c = 0; c < count; ++c) sums[first + c] += static_cast<double>(in_float.first[c]);
    }
  }
}
