// Winograd's transforms. Included as isa/common-inl.h describes.
//
// Whatever is multiplied has at most 16 significant bits, and the factors have at most 8. So every
// product is exact, and fused operations give the bits of separate ones.
// dfpjax/numbers/contraction/winograd.py defines the same in plain JAX.

// The transforms along one axis, of so many outputs and taps. The points are 0, 1, -1 and infinity,
// or 0, 5/8, -5/8, 3/2, -3/2 and infinity.
template <class S, int kOutputs, int kTaps>
struct AlongAxis;

template <class S>
struct AlongAxis<S, 2, 3> {
  using F = typename S::F;
  static F cut(F x) { return x; }
  static void input(const F* d, F* out) {
    out[0] = S::sub_float(d[2], d[0]);
    out[1] = S::add_float(d[1], d[2]);
    out[2] = S::sub_float(d[2], d[1]);
    out[3] = S::sub_float(d[3], d[1]);
  }
  static void cotangent(const F* y, F* out) {
    out[0] = y[0];
    out[1] = S::add_float(y[0], y[1]);
    out[2] = S::sub_float(y[0], y[1]);
    out[3] = y[1];
  }
  static void kernel(const F* w, F* out) {
    const F s = S::add_float(w[0], w[2]);
    out[0] = w[0];
    out[1] = S::add_float(s, w[1]);
    out[2] = S::sub_float(s, w[1]);
    out[3] = w[2];
  }
  static void output(const F* y, F* out) {
    out[0] = S::add_float(y[0], S::add_float(y[1], y[2]));
    out[1] = S::add_float(S::sub_float(y[1], y[2]), y[3]);
  }
  static void taps(const F* y, F* out) {
    const F s = S::add_float(y[1], y[2]);
    out[0] = S::add_float(y[0], s);
    out[1] = S::sub_float(y[1], y[2]);
    out[2] = S::add_float(s, y[3]);
  }
};

// What the transforms to and from six points have in common.
template <class S>
struct SixPoints {
  using F = typename S::F;
  static constexpr float kP = 0.625f, kP2 = kP * kP, kP3 = kP2 * kP;
  static constexpr float kQ = 1.5f, kQ2 = kQ * kQ, kQ3 = kQ2 * kQ, kQ4 = kQ2 * kQ2;

  // Keeps 16 significant bits.
  static F cut(F x) { return S::cut(x); }
  // factor * x, and the same plus y.
  static F times(float factor, F x) { return S::mul_float(S::broadcast_float(factor), x); }
  static F plus(float factor, F x, F y) {
    return S::multiply_add(S::broadcast_float(factor), x, y);
  }
  static void both(F even, F odd, F* out) {
    out[0] = S::add_float(even, odd);
    out[1] = S::sub_float(even, odd);
  }
  static void input(const F* d, F* out) {
    both(plus(-kQ2, d[2], d[4]), plus(-kP * kQ2, d[1], times(kP, d[3])), out + 1);
    both(plus(-kP2, d[2], d[4]), plus(-kQ * kP2, d[1], times(kQ, d[3])), out + 3);
    out[0] = plus(kP2 * kQ2, d[0], plus(-(kP2 + kQ2), d[2], d[4]));
    out[5] = plus(kP2 * kQ2, d[1], plus(-(kP2 + kQ2), d[3], d[5]));
  }
  // Sums and differences of the values at opposite points, and what these add to the coefficients
  // of a polynomial.
  struct Halves {
    explicit Halves(const F* y)
        : s1(cut(S::add_float(y[1], y[2]))),
          d1(cut(S::sub_float(y[1], y[2]))),
          s2(cut(S::add_float(y[3], y[4]))),
          d2(cut(S::sub_float(y[3], y[4]))) {}
    F to0(F first) const { return S::add_float(first, S::add_float(s1, s2)); }
    F to1() const { return plus(kQ, d2, times(kP, d1)); }
    F to2() const { return plus(kQ2, s2, times(kP2, s1)); }
    F to3() const { return plus(kQ3, d2, times(kP3, d1)); }
    F to4() const { return plus(kQ4, s2, times(kP2, cut(times(kP2, s1)))); }
    F s1, d1, s2, d2;
  };
};

template <class S>
struct AlongAxis<S, 4, 3> : SixPoints<S> {
  using Six = SixPoints<S>;
  using F = typename S::F;
  static void cotangent(const F* y, F* out) {
    out[0] = y[0];
    Six::both(Six::plus(Six::kP2, y[2], y[0]), Six::plus(Six::kP3, y[3], Six::times(Six::kP, y[1])),
              out + 1);
    Six::both(Six::plus(Six::kQ2, y[2], y[0]), Six::plus(Six::kQ3, y[3], Six::times(Six::kQ, y[1])),
              out + 3);
    out[5] = y[3];
  }
  static void kernel(const F* w, F* out) {
    out[0] = w[0];
    Six::both(Six::plus(Six::kP2, w[2], w[0]), Six::times(Six::kP, w[1]), out + 1);
    Six::both(Six::plus(Six::kQ2, w[2], w[0]), Six::times(Six::kQ, w[1]), out + 3);
    out[5] = w[2];
  }
  static void output(const F* y, F* out) {
    const typename Six::Halves h(y);
    out[0] = h.to0(y[0]);
    out[1] = h.to1();
    out[2] = h.to2();
    out[3] = S::add_float(h.to3(), y[5]);
  }
  static void taps(const F* y, F* out) {
    const typename Six::Halves h(y);
    out[0] = h.to0(y[0]);
    out[1] = h.to1();
    out[2] = S::add_float(h.to2(), y[5]);
  }
};

template <class S>
struct AlongAxis<S, 2, 5> : SixPoints<S> {
  using Six = SixPoints<S>;
  using F = typename S::F;
  static void cotangent(const F* y, F* out) {
    out[0] = y[0];
    Six::both(y[0], Six::times(Six::kP, y[1]), out + 1);
    Six::both(y[0], Six::times(Six::kQ, y[1]), out + 3);
    out[5] = y[1];
  }
  static void kernel(const F* w, F* out) {
    const auto at = [w](float x, float square, F* out) {
      const F even = Six::cut(Six::plus(square, w[4], w[2]));
      const F odd = Six::cut(Six::plus(square, w[3], w[1]));
      Six::both(Six::plus(square, even, w[0]), Six::times(x, odd), out);
    };
    out[0] = w[0];
    at(Six::kP, Six::kP2, out + 1);
    at(Six::kQ, Six::kQ2, out + 3);
    out[5] = w[4];
  }
  static void output(const F* y, F* out) {
    const typename Six::Halves h(y);
    out[0] = h.to0(y[0]);
    out[1] = S::add_float(h.to1(), y[5]);
  }
  static void taps(const F* y, F* out) {
    const typename Six::Halves h(y);
    out[0] = h.to0(y[0]);
    out[1] = h.to1();
    out[2] = h.to2();
    out[3] = h.to3();
    out[4] = S::add_float(h.to4(), y[5]);
  }
};

// One transform along all axes of a tile.
template <class S, Transform kTransform, int kOutputs, int kTaps, int kAxes>
struct AllAxes {
  using F = typename S::F;
  using Axis = AlongAxis<S, kOutputs, kTaps>;
  static constexpr int kIn = extent_before(kTransform, kOutputs, kTaps);
  static constexpr int kOut = extent_after(kTransform, kOutputs, kTaps);
  static constexpr int kElements = kAxes == 2 ? kIn * kIn : kIn;
  static constexpr int kResults = kAxes == 2 ? kOut * kOut : kOut;
  // Whether results that are needed twice are kept: those of kernels are soon computed again.
  static constexpr bool kKept = kTransform != Transform::kKernel;
  static constexpr bool kClip = kTransform != Transform::kInput;  // whose norms are 1

  static void along(const F* from, F* out) {
    if constexpr (kTransform == Transform::kInput) Axis::input(from, out);
    if constexpr (kTransform == Transform::kCotangent) Axis::cotangent(from, out);
    if constexpr (kTransform == Transform::kKernel) Axis::kernel(from, out);
    if constexpr (kTransform == Transform::kOutput) Axis::output(from, out);
    if constexpr (kTransform == Transform::kTaps) Axis::taps(from, out);
  }

  // Calls store(i, result i), given load(e) for the elements.
  template <class Load, class Store>
  static inline __attribute__((always_inline)) void run(Load load, Store store) {
    if constexpr (kAxes == 1) {
      F in[kIn], out[kOut];
#pragma GCC unroll 6
      for (int x = 0; x < kIn; ++x) in[x] = load(x);
      along(in, out);
#pragma GCC unroll 6
      for (int x = 0; x < kOut; ++x) store(x, out[x]);
    } else {
      F rows[kIn][kOut];
#pragma GCC unroll 6
      for (int y = 0; y < kIn; ++y) {
        F in[kIn];
#pragma GCC unroll 6
        for (int x = 0; x < kIn; ++x) in[x] = load(y * kIn + x);
        along(in, rows[y]);
      }
#pragma GCC unroll 6
      for (int x = 0; x < kOut; ++x) {
        F in[kIn], out[kOut];
#pragma GCC unroll 6
        for (int y = 0; y < kIn; ++y) in[y] = kBack ? rows[y][x] : Axis::cut(rows[y][x]);
        along(in, out);
#pragma GCC unroll 6
        for (int y = 0; y < kOut; ++y) store(y * kOut + x, out[y]);
      }
    }
  }

 private:
  static constexpr bool kBack = kTransform == Transform::kOutput || kTransform == Transform::kTaps;
};

// Calls f with the transform of `kTransform` that a tile needs.
template <class S, Transform kTransform, class F>
inline void with_tile(const WinogradTile& tile, F f) {
  if (tile.outputs == 4)
    tile.axes == 2 ? f(AllAxes<S, kTransform, 4, 3, 2>{}) : f(AllAxes<S, kTransform, 4, 3, 1>{});
  else if (tile.taps == 3)
    tile.axes == 2 ? f(AllAxes<S, kTransform, 2, 3, 2>{}) : f(AllAxes<S, kTransform, 2, 3, 1>{});
  else
    tile.axes == 2 ? f(AllAxes<S, kTransform, 2, 5, 2>{}) : f(AllAxes<S, kTransform, 2, 5, 1>{});
}
template <class S, class F>
inline void with_transform(const Patches& t, F f) {
  if (t.transform == Transform::kInput) return with_tile<S, Transform::kInput>(t.tile, f);
  if (t.transform == Transform::kCotangent) return with_tile<S, Transform::kCotangent>(t.tile, f);
  with_tile<S, Transform::kKernel>(t.tile, f);
}

// Transforms lanes [lane, lane + kLanes) of patch k, or as many as there are. The others are zero.
template <class S, class All, class Store>
inline __attribute__((always_inline)) void transform_lanes(const Patches& t, int k, int lane,
                                                           Store store) {
  const int16_t* const* from = t.from + k * All::kElements;
  const float* const scales = t.scales + k * All::kElements;
  const int16_t* last[All::kElements];
  int16_t copies[All::kElements][S::kLanes];
  if (lane + S::kLanes > t.lanes) {
    const auto bytes = static_cast<size_t>(t.lanes - lane) * sizeof(int16_t);
    for (int e = 0; e < All::kElements; ++e) {
      __builtin_memset(copies[e], 0, sizeof copies[e]);
      __builtin_memcpy(copies[e], from[e] + lane, bytes);
      last[e] = copies[e];
    }
    from = last;
    lane = 0;
  }
  All::run(
      [&](int e) {
        return S::mul_float(S::load_shorts(from[e] + lane), S::broadcast_float(scales[e]));
      },
      store);
}

// Stores as many of the lanes as there are.
template <class S, class V, class T>
inline __attribute__((always_inline)) void store_lanes(T* to, V x, int count) {
  if (count >= S::kLanes)
    __builtin_memcpy(to, &x, sizeof x);
  else
    __builtin_memcpy(to, &x, static_cast<size_t>(count) * sizeof(T));
}

template <class S>
void transform_patch(const Patches& t, float* out, int64_t stride) {
  with_transform<S>(t, [&](auto all) {
    for (int lane = 0; lane < t.lanes; lane += S::kLanes)
      transform_lanes<S, decltype(all)>(t, 0, lane, [&](int p, typename S::F x) {
        store_lanes<S>(out + p * stride + lane, x, t.lanes - lane);
      });
  });
}

// What transformed values are multiplied by to be mantissas of 16 bits, given the largest magnitude
// of the values, and the factor that they are multiplied by besides. Sets their exponent.
inline float mantissa_factor(float largest, float norm, int32_t* exponent) {
  largest *= norm < 0 ? -norm : norm;
  int32_t bits;
  __builtin_memcpy(&bits, &largest, sizeof bits);
  // Mantissas are at most 32767.
  *exponent = ((bits + 256) >> 23) - 127 - 14;
  if (*exponent < -kMostBelowBase) *exponent = kAbsent;
  bits = *exponent == kAbsent ? 0 : (127 - *exponent) << 23;
  float factor;
  __builtin_memcpy(&factor, &bits, sizeof factor);
  return factor * norm;
}

// Only a factor that is not a power of two can round to more than the largest mantissa.
template <class S, bool kClip = true>
inline typename S::I to_mantissas(typename S::F x, typename S::F factor) {
  x = S::mul_float(x, factor);
  if constexpr (kClip) x = S::clip(x, S::broadcast_float(kMostMantissa));
  return S::round_float(x);
}

template <class S>
void quantize_rows(const float* from, int64_t stride, const float* norms, int positions, int count,
                   int16_t* out, int64_t out_stride, int32_t* exponents, int64_t exponent_stride) {
  using F = typename S::F;
  for (int p = 0; p < positions; ++p, from += stride, out += out_stride) {
    F most = S::broadcast_float(0);
    for (int i = 0; i < count; i += S::kLanes) most = S::max_abs(most, S::load_float(from + i));
    const F factor = S::broadcast_float(
        mantissa_factor(S::reduce_max_float(most), norms[p], exponents + p * exponent_stride));
    const auto round = [&](auto mantissas) {
      for (int i = 0; i < count; i += S::kLanes)
        S::store_shorts(out + i, mantissas(S::load_float(from + i), factor));
    };
    norms[p] == 1 ? round(to_mantissas<S, false>) : round(to_mantissas<S, true>);
  }
}

// Sets factors and exponents of `lanes` lanes, given the largest magnitudes at each position.
template <class S, int kPositions>
inline void set_factors(const typename S::F* most, const float* norms, int lanes, float* factors,
                        int32_t* exponents, int64_t exponent_stride) {
  for (int p = 0; p < kPositions; ++p) {
    float largest[S::kLanes];
    S::store_float(largest, most[p]);
    for (int i = 0; i < S::kLanes; ++i) {
      int32_t exponent;
      factors[p * S::kLanes + i] = mantissa_factor(largest[i], norms[p], &exponent);
      if (i < lanes) exponents[p * exponent_stride + i] = exponent;
    }
  }
}

constexpr int kPatchesAtOnce = 32;

template <class S>
void pack_patches(const Patches& t, const float* norms, float* buffer, int32_t* out,
                  int64_t position_stride, int64_t pair_stride, int32_t* exponents,
                  int64_t exponent_stride) {
  with_transform<S>(t, [&](auto all) {
    using All = decltype(all);
    using F = typename S::F;
    constexpr int kPatch = All::kResults * S::kLanes;
    for (int lane = 0; lane < t.lanes; lane += S::kLanes) {
      const int lanes = t.lanes - lane < S::kLanes ? t.lanes - lane : S::kLanes;
      F most[All::kResults];
      for (int p = 0; p < All::kResults; ++p) most[p] = S::broadcast_float(0);
      for (int k = 0; k < t.count; ++k)
        transform_lanes<S, All>(t, k, lane, [&](int p, F x) {
          most[p] = S::max_abs(most[p], x);
          if (All::kKept) S::store_float(buffer + k * kPatch + p * S::kLanes, x);
        });
      float factors[kPatch];
      set_factors<S, All::kResults>(most, norms, lanes, factors, exponents + lane, exponent_stride);
      // Some patches at a time, so that the words of a position are written in one go.
      for (int first = 0; first < t.count; first += kPatchesAtOnce) {
        const int count = t.count - first < kPatchesAtOnce ? t.count - first : kPatchesAtOnce;
        float* const values = All::kKept ? buffer + first * kPatch : buffer;
        if constexpr (!All::kKept)
          for (int k = 0; k < count; ++k)
            transform_lanes<S, All>(t, first + k, lane, [&](int p, F x) {
              S::store_float(values + k * kPatch + p * S::kLanes, x);
            });
        if (count % 2 != 0)
          for (int i = 0; i < kPatch; ++i) values[count * kPatch + i] = 0;
        for (int p = 0; p < All::kResults; ++p) {
          const F factor = S::load_float(factors + p * S::kLanes);
          const float* from = values + p * S::kLanes;
          int32_t* to = out + p * position_stride + first / 2 * pair_stride + lane;
          for (int k = 0; k < count; k += 2, from += 2 * kPatch, to += pair_stride)
            store_lanes<S>(
                to,
                S::join(to_mantissas<S, All::kClip>(S::load_float(from), factor),
                        to_mantissas<S, All::kClip>(S::load_float(from + kPatch), factor)),
                lanes);
        }
      }
    }
  });
}

template <class S>
void transform_back(const WinogradSums& t) {
  const auto run = [&](auto all) {
    using All = decltype(all);
    for (int column = 0; column < t.columns; column += S::kLanes) {
      const auto factor = S::power(S::load(t.exponents + column), t.exponent);
      All::run([&](int p) { return S::load_float(t.sums + p * t.position_stride + column); },
               [&](int i, typename S::F x) {
                 if (t.out[i] == nullptr) return;
                 x = S::mul_float(x, factor);
                 t.stream ? S::stream_float(t.out[i] + column, x)
                          : S::store_float(t.out[i] + column, x);
               });
    }
  };
  if (t.transform == Transform::kOutput)
    with_tile<S, Transform::kOutput>(t.tile, run);
  else
    with_tile<S, Transform::kTaps>(t.tile, run);
}
