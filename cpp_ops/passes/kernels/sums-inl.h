// Reductions over all axes but the last, in one pass. Included as isa/common-inl.h describes. The
// order of additions is the same on every path: lanes are channels, rows are added in float32
// within a block, and blocks are added in float64.

inline constexpr int64_t kRowsInFloat = 32;

// Sums go row by row, as memory likes it, and through so many rows at a time.
inline constexpr int kRowsAtOnce = 4;

// Float32 sums of so many channels stay in the first-level cache.
inline constexpr int64_t kMostChannels = 1024;

// Adds the sums of rows [rows][channels], and a second kind of sums unless `second` is null.
// vectors(row, count, channel, sums, second_sums) adds a vector of channels of `count` rows to
// float32 sums, and column(...) likewise a channel that does not fill a vector.
template <class Vectors, class Column>
inline void add_sums(int64_t rows, int64_t channels, double* first, double* second, Vectors vectors,
                     Column column) {
  alignas(kVectorBytes) float sums[2][kMostChannels];
  for (int64_t start = 0; start < channels; start += kMostChannels) {
    const int64_t left = channels - start < kMostChannels ? channels - start : kMostChannels;
    const int64_t in_vectors = left / kFloats * kFloats;
    for (int64_t row = 0; row < rows; row += kRowsInFloat) {
      const int64_t end = rows - row < kRowsInFloat ? rows : row + kRowsInFloat;
      for (auto& kind : sums)
        for (int64_t c = 0; c < left; ++c) kind[c] = 0;
      int64_t r = row;
      for (; r + kRowsAtOnce <= end; r += kRowsAtOnce)
        for (int64_t c = 0; c < in_vectors; c += kFloats)
          vectors(r, kRowsAtOnce, start + c, sums[0] + c, sums[1] + c);
      for (; r < end; ++r)
        for (int64_t c = 0; c < in_vectors; c += kFloats)
          vectors(r, 1, start + c, sums[0] + c, sums[1] + c);
      for (int64_t c = in_vectors; c < left; ++c)
        column(row, end - row, start + c, sums[0] + c, sums[1] + c);
      for (int64_t c = 0; c < left; ++c) first[start + c] += static_cast<double>(sums[0][c]);
      if (second == nullptr) continue;
      for (int64_t c = 0; c < left; ++c) second[start + c] += static_cast<double>(sums[1][c]);
    }
  }
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
  const auto by = [&](auto kernel) {
    return [=](int64_t r, int64_t count, int64_t c, float* sum, float* square) {
      kernel(x + r * channels + c, count, channels, sum, square, low + c, high + c);
    };
  };
  add_sums(rows, channels, sums, squares, by(moments_of<Floats>), by(moments_of<float>));
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
  const auto by = [&](auto kernel) {
    return [=](int64_t r, int64_t count, int64_t c, float* sum, float* product) {
      PairedRows at = all.from(c);
      at.g += r * channels;
      at.x += r * channels;
      kernel(at, count, channels, sum, product);
    };
  };
  add_sums(rows, channels, all.sums, all.products, by(paired_of<Floats, kRectified>),
           by(paired_of<float, kRectified>));
}

void paired_sums(const PairedRows& at, int64_t rows, int64_t channels) {
  if (at.scale != nullptr)
    paired_rows<true>(at, rows, channels);
  else
    paired_rows<false>(at, rows, channels);
}

template <class V>
inline void masked_of(const float* x, const bool* positive, int64_t rows, int64_t stride,
                      float* sums) {
  V sum = load_as<V>(sums);
  for (int64_t r = 0; r < rows; ++r, x += stride, positive += stride)
    sum += load_truth<V>(positive) ? load_as<V>(x) : V{};
  store_as(sums, sum);
}

void masked_sums(const MaskedRows& all, int64_t rows, int64_t channels, double* sums) {
  const auto by = [&](auto kernel) {
    return [=](int64_t r, int64_t count, int64_t c, float* sum, float*) {
      const MaskedRows at = all.from(r, c);
      kernel(at.x, at.positive, count, at.stride, sum);
    };
  };
  add_sums(rows, channels, sums, nullptr, by(masked_of<Floats>), by(masked_of<float>));
}
