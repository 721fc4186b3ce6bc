// Reductions over all axes but the last, in one pass. Included as isa/common-inl.h describes. The
// order of additions is the same on every path: lanes are channels, rows are added in float32
// within a block, and blocks are added in float64.

inline constexpr int64_t kRowsInFloat = 32;

template <class V>
inline void add_lanes(V v, double* to) {
  float lanes[sizeof(V) / sizeof(float)];
  __builtin_memcpy(lanes, &v, sizeof v);
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) to[i] += static_cast<double>(lanes[i]);
}

// Handles `kVectors` vectors of channels over up to kRowsInFloat rows.
template <class V, int kVectors>
inline void moments_of(const float* x, int64_t rows, int64_t stride, double* sums, double* squares,
                       float* low, float* high) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  V sum[kVectors], square[kVectors], least[kVectors], most[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = square[v] = V{};
    least[v] = load_as<V>(low + v * kLanes);
    most[v] = load_as<V>(high + v * kLanes);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const V a = load_as<V>(x + r * stride + v * kLanes);
      sum[v] += a;
      square[v] += a * a;
      least[v] = a < least[v] ? a : least[v];
      most[v] = a > most[v] ? a : most[v];
    }
  for (int v = 0; v < kVectors; ++v) {
    add_lanes(sum[v], sums + v * kLanes);
    add_lanes(square[v], squares + v * kLanes);
    store_as(low + v * kLanes, least[v]);
    store_as(high + v * kLanes, most[v]);
  }
}

void moments(const float* x, int64_t rows, int64_t channels, double* sums, double* squares,
             float* low, float* high) {
  for (; rows > 0; rows -= kRowsInFloat, x += kRowsInFloat * channels) {
    const int64_t count = rows < kRowsInFloat ? rows : kRowsInFloat;
    int64_t c = 0;
    for (; c + 2 * kFloats <= channels; c += 2 * kFloats)
      moments_of<Floats, 2>(x + c, count, channels, sums + c, squares + c, low + c, high + c);
    for (; c + kFloats <= channels; c += kFloats)
      moments_of<Floats, 1>(x + c, count, channels, sums + c, squares + c, low + c, high + c);
    for (; c < channels; ++c)
      moments_of<float, 1>(x + c, count, channels, sums + c, squares + c, low + c, high + c);
  }
}

template <class V, int kVectors, bool kRectified>
inline void paired_of(const PairedRows& at, int64_t rows, int64_t stride) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  V sum[kVectors], product[kVectors], middle[kVectors], scale[kVectors], shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = product[v] = scale[v] = shift[v] = V{};
    middle[v] = load_as<V>(at.centre + v * kLanes);
    if constexpr (kRectified) {
      scale[v] = load_as<V>(at.scale + v * kLanes);
      shift[v] = load_as<V>(at.shift + v * kLanes);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const V centred = load_as<V>(at.x + r * stride + v * kLanes) - middle[v];
      V a = load_as<V>(at.g + r * stride + v * kLanes);
      if constexpr (kRectified) a = fused(centred, scale[v], shift[v]) > V{} ? a : V{};
      sum[v] += a;
      product[v] += a * centred;
    }
  for (int v = 0; v < kVectors; ++v) {
    add_lanes(sum[v], at.sums + v * kLanes);
    add_lanes(product[v], at.products + v * kLanes);
  }
}

template <bool kRectified>
inline void paired_rows(PairedRows at, int64_t rows, int64_t channels) {
  for (; rows > 0; rows -= kRowsInFloat) {
    const int64_t count = rows < kRowsInFloat ? rows : kRowsInFloat;
    int64_t c = 0;
    for (; c + 2 * kFloats <= channels; c += 2 * kFloats)
      paired_of<Floats, 2, kRectified>(at.from(c), count, channels);
    for (; c + kFloats <= channels; c += kFloats)
      paired_of<Floats, 1, kRectified>(at.from(c), count, channels);
    for (; c < channels; ++c) paired_of<float, 1, kRectified>(at.from(c), count, channels);
    at.g += kRowsInFloat * channels;
    at.x += kRowsInFloat * channels;
  }
}

void paired_sums(const PairedRows& at, int64_t rows, int64_t channels) {
  if (at.scale != nullptr)
    paired_rows<true>(at, rows, channels);
  else
    paired_rows<false>(at, rows, channels);
}
