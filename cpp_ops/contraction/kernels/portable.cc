// Plain C++ kernels for any architecture. They give the same bits as the SIMD kernels.
#include <algorithm>
#include <cstring>

#include "contraction/kernels/table.h"

namespace dfpjax {
namespace {

#include "isa/common-inl.h"

struct Portable {
  static constexpr int kLanes = 8;
  static constexpr bool kFused = false;
  static constexpr int kStripVectors = 2;
  static constexpr bool kNarrow = false;
  static constexpr int kShortChain = 16;
  struct I {
    int32_t v[kLanes];
  };
  struct F {
    float v[kLanes];
  };

  static I zero() { return I{}; }
  static I load(const void* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(void* p, I x) { std::memcpy(p, &x, sizeof x); }
  static I broadcast(const int32_t* p) {
    return map([p](int) { return *p; });
  }
  // Hides the value from the optimizer.
  template <class V>
  static void hide(V& x) {
    asm volatile("" : "+m"(x));
  }
  static void dot(I& sum, I a, I b) { sum = add(sum, pair_dot(a, b)); }
  static I pair_dot(I a, I b) {  // wraps, as the instructions do
    return map([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(low(a.v[i]) * low(b.v[i])) +
                                  static_cast<uint32_t>(high(a.v[i]) * high(b.v[i])));
    });
  }
  // Words with p[i] in the low half and zero in the high half.
  static I low_halves(const int16_t* p) {
    return map([p](int i) { return static_cast<int32_t>(static_cast<uint16_t>(p[i])); });
  }
  // Replaces INT32_MIN by INT32_MAX.
  static I lowest_to_largest(I x) {
    return map([&](int i) { return x.v[i] == INT32_MIN ? INT32_MAX : x.v[i]; });
  }
  static I add(I a, I b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I max(I a, I b) {
    return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static int32_t reduce_max(I a) {
    int32_t result = a.v[0];
    for (int i = 1; i < kLanes; ++i) result = a.v[i] > result ? a.v[i] : result;
    return result;
  }
  static I squares(I m) {
    return map([&](int i) {
      const uint32_t x = static_cast<uint32_t>(low(m.v[i]) * low(m.v[i]));
      const uint32_t y = static_cast<uint32_t>(high(m.v[i]) * high(m.v[i]));
      return static_cast<int32_t>((x + y) >> kNormShift);
    });
  }

  // 16-bit halves, shifted right by 1 to 15 bits and rounded.
  static I shift_to_nearest(I x, int shift) {
    return map_halves(x, x, [shift](int y, int) {
      const int down = y >> shift, rest = y & ((1 << shift) - 1);
      return down + (rest + (down & 1) > (1 << (shift - 1)) ? 1 : 0);
    });
  }
  static I shift_dithered(I x, I thresholds, uint16_t other, int shift) {
    return map_halves(x, thresholds, [other, shift](int y, int threshold) {
      return std::min(y + (((threshold & 0xffff) ^ other) >> (16 - shift)), 32767) >> shift;
    });
  }

  // The words of `pair_words`, with each half shifted right by a number of bits from 0 to 15.
  static I pair_to_nearest(const int16_t* x, const int16_t* y, int shift_x, int shift_y) {
    const auto one = [](int value, int shift) {
      const int down = value >> shift, rest = value & ((1 << shift) - 1);
      return shift == 0 ? value : down + (rest + (down & 1) > (1 << (shift - 1)) ? 1 : 0);
    };
    return map([&](int i) {
      return join_words(static_cast<int16_t>(one(x[i], shift_x)),
                        static_cast<int16_t>(one(y[i], shift_y)));
    });
  }
  static I pair_dithered(const int16_t* x, const int16_t* y, int shift_x, int shift_y,
                         uint16_t of_x, uint16_t of_y, size_t lane) {
    const auto one = [](int value, int threshold, int shift) {
      return std::min(value + (threshold >> (16 - shift)), 32767) >> shift;
    };
    return map([&](int i) {
      const int of_lane = kThresholds.of_lane[lane + static_cast<size_t>(i)];
      return join_words(static_cast<int16_t>(one(x[i], of_lane ^ of_x, shift_x)),
                        static_cast<int16_t>(one(y[i], of_lane ^ of_y, shift_y)));
    });
  }

  static F to_float(I x) {
    F r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(x.v[i]);
    return r;
  }
  static F load_float(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store_float(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  static void stream_float(float* p, F x) { store_float(p, x); }
  static F broadcast_float(float x) {
    F r;
    for (float& v : r.v) v = x;
    return r;
  }
  static F add_float(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
    return a;
  }
  static F mul_float(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static F sub_float(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static F multiply_add(F a, F b, F c) { return add_float(mul_float(a, b), c); }
  static float reduce_max_float(F x) { return *std::max_element(x.v, x.v + kLanes); }
  static F max_abs(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.v[i] = std::max(a.v[i], b.v[i] < 0 ? -b.v[i] : b.v[i]);
    return a;
  }
  static F clip(F x, F most) {
    for (int i = 0; i < kLanes; ++i) x.v[i] = std::max(std::min(x.v[i], most.v[i]), -most.v[i]);
    return x;
  }
  // Clears the low 8 bits.
  static F cut(F x) {
    I bits = load(&x);
    for (int32_t& v : bits.v) v &= -256;
    return load_float(reinterpret_cast<const float*>(&bits));
  }
  // 2^(x + y).
  static F power(I x, int32_t y) {
    const I bits = map([&](int i) { return (x.v[i] + y + 127) << 23; });
    return load_float(reinterpret_cast<const float*>(&bits));
  }
  static F load_shorts(const int16_t* p) {
    F r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = p[i];
    return r;
  }
  // Of numbers with at most 22 bits.
  static I round_float(F x) {
    const F shifted = add_float(x, broadcast_float(12582912.0f));  // 1.5 * 2^23
    const I bits = load(&shifted);
    return map([&](int i) { return bits.v[i] - 0x4b400000; });
  }
  static void store_shorts(int16_t* p, I x) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(x.v[i]);
  }
  // Words with these halves.
  static I join(I low, I high) {
    return map([&](int i) {
      return join_words(static_cast<int16_t>(low.v[i]), static_cast<int16_t>(high.v[i]));
    });
  }
  static void fma_float(F& sum, F a, F b) {
    for (int i = 0; i < kLanes; ++i) sum.v[i] += a.v[i] * b.v[i];
  }

  // What add_scaled multiplies by, made of exponents.
  static EightFloats scales(Eight exponents) {
    const Eight bits = (larger(exponents, eight(-127)) + 127) << 23;
    return load_as<EightFloats>(&bits);
  }
  static F scale_at(const float* scale) { return broadcast_float(*scale); }
  // total + sum * scale. The product is exact.
  static F add_scaled(F total, I sum, F scale) {
    return add_float(total, mul_float(to_float(sum), scale));
  }
  static constexpr bool kScalesTotals = false;  // add_scaled takes no longer than an addition

  // Norms of segments, from vectors of 8 sums over 2 elements: two for each segment.
  struct SegmentMaxima {
    int32_t of[kSegmentNorms][kSegments];
  };
  static constexpr int kSquares = 16;  // vectors of a row
  static void raise_segments(const I* pairs, SegmentMaxima* most) {
    int32_t sum[kBlock / 2];
    std::memcpy(sum, pairs, sizeof sum);
    int count = kBlock / 4;
    for (int level = kSegmentNorms - 1; level >= 0; --level, count /= 2)
      for (int i = 0; i < count; ++i) {
        sum[i] = sum[2 * i] + sum[2 * i + 1];
        int32_t& of_segment = most->of[level][i / (count / kSegments)];
        of_segment = std::max(of_segment, sum[i]);
      }
  }
  // Writes the largest norms of each segment, of 32, 16, 8 and 4 elements.
  static void store_segments(const SegmentMaxima& most, int32_t* out) {
    std::memcpy(out, most.of, sizeof most.of);
  }

  // Takes a row as 16 vectors of sums over 2 elements. Raises the maxima to its sums over 4, 8 and
  // 16 elements and returns the sums over 16.
  struct Sums16 {
    int32_t v[kBlock / 16];
  };
  static Sums16 raise_short(const I* pairs, I* maxima) {
    int32_t sum[kBlock / 2];
    std::memcpy(sum, pairs, sizeof sum);
    add_neighbours(6, 4, kBlock / 4, sum, maxima);
    Sums16 sums;
    std::memcpy(&sums, sum, sizeof sums);
    return sums;
  }
  // Takes the sums over 16 elements of two rows. Raises the maxima to their sums over 32 and more.
  static void raise_long(Sums16 first, Sums16 second, I* maxima) {
    add_neighbours(3, 0, kBlock / 32, first.v, maxima);
    add_neighbours(3, 0, kBlock / 32, second.v, maxima);
  }

  // Words with x[i] in the low half and y[i] in the high half.
  static I pair_words(const int16_t* x, const int16_t* y) {
    return map([=](int i) { return join_words(x[i], y[i]); });
  }
  static void interleave_tail(const int16_t* x, const int16_t* y, int n, bool, int32_t* out) {
    for (int i = 0; i < n; ++i) out[i] = join_words(x[i], y[i]);
  }
  static void copy_tail(const int16_t* from, int n, int16_t* to) {
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }
  // Transposes 8 x 8 words.
  static void transpose(const int16_t* rows, int64_t stride, int32_t* out, int64_t out_stride) {
    for (int i = 0; i < kLanes; ++i) {
      const I row = load(rows + i * stride);
      for (int j = 0; j < kLanes; ++j) out[j * out_stride + i] = row.v[j];
    }
  }

 private:
  static void add_neighbours(int level, int last, int count, int32_t* sum, I* maxima) {
    for (; level >= last; --level, count /= 2)
      for (int i = 0; i < count; ++i) {
        sum[i] = sum[2 * i] + sum[2 * i + 1];
        maxima[level].v[0] = std::max(maxima[level].v[0], sum[i]);
      }
  }
  template <class F>
  static I map(F f) {
    I r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  template <class F>
  static I map_halves(I x, I y, F f) {
    return map([&](int i) {
      return join_words(static_cast<int16_t>(f(low(x.v[i]), low(y.v[i]))),
                        static_cast<int16_t>(f(high(x.v[i]), high(y.v[i]))));
    });
  }
  static int32_t low(int32_t word) { return static_cast<int16_t>(word & 0xffff); }
  static int32_t high(int32_t word) { return word >> 16; }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const ContractionKernels kPortableContraction;
const ContractionKernels kPortableContraction = make_table<Portable>();

}  // namespace dfpjax
