// Normalized and rectified numbers, and gradients of normalizations. Included as isa/common-inl.h
// describes.

// Stores the result of a comparison as bool.
inline void store_truth(bool* to, Ints holds) {
  store_as(to, __builtin_convertvector(holds & 1, Bytes));
}
inline void store_truth(bool* to, bool holds) { *to = holds; }

// Handles `kVectors` vectors of channels.
template <class V, class Bits, int kVectors, bool kSum>
inline void rectified_of(RectifiedRows at, int64_t rows) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  V mean[kVectors], scale[kVectors], shift[kVectors], least[kVectors];
  Bits most[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    mean[v] = load_as<V>(at.mean + v * kLanes);
    scale[v] = load_as<V>(at.scale + v * kLanes);
    shift[v] = load_as<V>(at.shift + v * kLanes);
    if constexpr (kSum) {
      least[v] = load_as<V>(at.low + v * kLanes);
      most[v] = load_as<Bits>(at.high_bits + v * kLanes);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * at.stride + v * kLanes;
      V sum = fused(load_as<V>(at.x + i) - mean[v], scale[v], shift[v]);
      if constexpr (kSum) sum = sum + load_as<V>(at.residual + i);
      const V y = sum <= V{} ? V{} : sum;  // keeps NaN, turns -0 into 0
      store_as(at.out + r * at.out_stride + v * kLanes, y);
      if constexpr (kSum) {
        if (at.positive != nullptr) store_truth(at.positive + i, y > V{});
        // The bits of a NaN are the greatest.
        const Bits bits = load_as<Bits>(&y) & 0x7fffffff;
        most[v] = bits > most[v] ? bits : most[v];
        least[v] = y < least[v] ? y : least[v];
      }
    }
  if constexpr (kSum) {
    for (int v = 0; v < kVectors; ++v) {
      store_as(at.low + v * kLanes, least[v]);
      store_as(at.high_bits + v * kLanes, most[v]);
    }
  }
}

template <class V, int kVectors, bool kRectified>
inline void gradient_of(GradientRows at, int64_t rows) {
  constexpr int kLanes = sizeof(V) / sizeof(float);
  V scale[kVectors], offset[kVectors], slope[kVectors], mean[kVectors], shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    scale[v] = load_as<V>(at.scale + v * kLanes);
    offset[v] = load_as<V>(at.offset + v * kLanes);
    slope[v] = load_as<V>(at.slope + v * kLanes);
    if constexpr (kRectified) {
      mean[v] = load_as<V>(at.mean + v * kLanes);
      shift[v] = load_as<V>(at.shift + v * kLanes);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = r * at.stride + v * kLanes;
      const V x = load_as<V>(at.x + i);
      V g = load_as<V>(at.g + i);
      if constexpr (kRectified) g = fused(x - mean[v], scale[v], shift[v]) > V{} ? g : V{};
      store_as(at.out + r * at.out_stride + v * kLanes,
               fused(slope[v], x, fused(g, scale[v], offset[v])));
    }
}

// Calls two(at), one(at) or last(at) for two vectors of channels, one, or a single channel. It
// takes a few rows at a time, of which the caches and prefetchers can follow all.
template <class Rows, class Two, class One, class Last>
inline void for_channels(const Rows& all, int64_t rows, int64_t channels, Two two, One one,
                         Last last) {
  constexpr int64_t kMostRows = 32;
  for (int64_t r = 0; r < rows; r += kMostRows) {
    const int64_t count = rows - r < kMostRows ? rows - r : kMostRows;
    int64_t c = 0;
    for (; c + 2 * kFloats <= channels; c += 2 * kFloats) two(all.from(r, c), count);
    for (; c + kFloats <= channels; c += kFloats) one(all.from(r, c), count);
    for (; c < channels; ++c) last(all.from(r, c), count);
  }
}

void rectified(const RectifiedRows& at, int64_t rows, int64_t channels) {
  for_channels(at, rows, channels, rectified_of<Floats, Ints, 2, false>,
               rectified_of<Floats, Ints, 1, false>, rectified_of<float, int32_t, 1, false>);
}

void rectified_sum(const RectifiedRows& at, int64_t rows, int64_t channels) {
  for_channels(at, rows, channels, rectified_of<Floats, Ints, 2, true>,
               rectified_of<Floats, Ints, 1, true>, rectified_of<float, int32_t, 1, true>);
}

void gradient(const GradientRows& at, int64_t rows, int64_t channels) {
  if (at.mean != nullptr)
    for_channels(at, rows, channels, gradient_of<Floats, 2, true>, gradient_of<Floats, 1, true>,
                 gradient_of<float, 1, true>);
  else
    for_channels(at, rows, channels, gradient_of<Floats, 2, false>, gradient_of<Floats, 1, false>,
                 gradient_of<float, 1, false>);
}
