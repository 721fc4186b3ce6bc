// AVX2 vectors for the kernels; `Dot` adds the dot products of int16 pairs to int32 lanes.
// Included inside an unnamed namespace by files compiled for AVX2.

#include "isa/common-inl.h"

template <class Dot>
struct Avx2 {
  using I = __m256i;
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr bool kFused = Dot::kFused;
  static constexpr int kStripVectors = 2;  // 6 x 2 sums, 2 of B, the broadcast of A, one to spare
  static constexpr bool kNarrow = false;   // 8 lanes are too few for 4 columns of 4 words
  static constexpr int kShortChain = 4;    // words; up to this, float32 sums stay in registers

  static I zero() { return _mm256_setzero_si256(); }
  static I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  static void store(void* p, I x) { _mm256_storeu_si256(static_cast<I*>(p), x); }
  static I broadcast(const int32_t* p) { return _mm256_set1_epi32(*p); }
  // Hides the value from the optimizer.
  template <class V>
  static void hide(V& x) {
    asm volatile("" : "+x"(x));
  }
  static void dot(I& sum, I a, I b) { Dot::add(sum, a, b); }
  static I pair_dot(I a, I b) { return _mm256_madd_epi16(a, b); }
  // Words with p[i] in the low half and zero in the high half.
  static I low_halves(const int16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  // Replaces INT32_MIN by INT32_MAX.
  static I lowest_to_largest(I x) {
    return add(x, _mm256_cmpeq_epi32(x, _mm256_set1_epi32(INT32_MIN)));
  }
  static I max(I a, I b) { return _mm256_max_epi32(a, b); }
  static int32_t reduce_max(I a) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return _mm_cvtsi128_si32(x);
  }
  static I squares(I m) { return _mm256_srli_epi32(_mm256_madd_epi16(m, m), kNormShift); }

  // 16-bit lanes, shifted right by 1 to 15 bits and rounded.
  static I shift_to_nearest(I x, int shift) {
    const I down = _mm256_sra_epi16(x, _mm_cvtsi32_si128(shift));
    const I rest = _mm256_and_si256(x, _mm256_set1_epi16(static_cast<int16_t>((1 << shift) - 1)));
    const I odd = _mm256_and_si256(down, _mm256_set1_epi16(1));
    const I up = _mm256_cmpgt_epi16(_mm256_adds_epi16(rest, odd),
                                    _mm256_set1_epi16(static_cast<int16_t>(1 << (shift - 1))));
    return _mm256_sub_epi16(down, up);
  }
  static I shift_dithered(I x, I thresholds, uint16_t other, int shift) {
    const I both = _mm256_xor_si256(thresholds, _mm256_set1_epi16(static_cast<int16_t>(other)));
    const I added = _mm256_srl_epi16(both, _mm_cvtsi32_si128(16 - shift));
    return _mm256_sra_epi16(_mm256_adds_epi16(x, added), _mm_cvtsi32_si128(shift));
  }

  // The words of `pair_words`, with each half shifted right by a number of bits from 0 to 15.
  static I pair_to_nearest(const int16_t* x, const int16_t* y, int shift_x, int shift_y) {
    return join(half_to_nearest(x, shift_x), half_to_nearest(y, shift_y));
  }
  static I pair_dithered(const int16_t* x, const int16_t* y, int shift_x, int shift_y,
                         uint16_t of_x, uint16_t of_y, size_t lane) {
    const __m128i of_lane = load_half(&kThresholds.of_lane[lane]);
    return join(half_dithered(x, shift_x, of_lane, of_x), half_dithered(y, shift_y, of_lane, of_y));
  }

  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static F load_float(const float* p) { return _mm256_loadu_ps(p); }
  static void store_float(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void stream_float(float* p, F x) { _mm256_stream_ps(p, x); }
  static F broadcast_float(float x) { return _mm256_set1_ps(x); }
  static F add_float(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul_float(F a, F b) { return _mm256_mul_ps(a, b); }
  static F sub_float(F a, F b) { return _mm256_sub_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float reduce_max_float(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static F max_abs(F a, F b) {
    return _mm256_max_ps(a, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), b));
  }
  static F clip(F x, F most) {
    return _mm256_max_ps(_mm256_min_ps(x, most), _mm256_sub_ps(_mm256_setzero_ps(), most));
  }
  // Clears the low 8 bits.
  static F cut(F x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(-256))); }
  // 2^(x + y).
  static F power(I x, int32_t y) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(y + 127)), 23));
  }
  static F load_shorts(const int16_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static I round_float(F x) { return _mm256_cvtps_epi32(x); }
  static void store_shorts(int16_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  // Words with these halves.
  static I join(I low, I high) {
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
  }
  static void fma_float(F& sum, F a, F b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }

  // What add_scaled multiplies by, made of exponents.
  static EightFloats scales(Eight exponents) {
    const Eight bits = (larger(exponents, eight(-127)) + 127) << 23;
    return load_as<EightFloats>(&bits);
  }
  // One scale, as add_scaled takes it. GCC 12 would hold those of all rows in registers, of which
  // there are none.
  static F scale_at(const float* scale) {
    F factor;
    asm volatile("vbroadcastss %1, %0" : "=x"(factor) : "m"(*scale));
    return factor;
  }
  // total + sum * scale. The product is exact.
  static F add_scaled(F total, I sum, F scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, total);
  }
  static constexpr bool kScalesTotals = false;  // add_scaled takes no longer than an addition

  // Norms of segments, from vectors of 8 sums over 2 elements: two for each segment.
  struct SegmentMaxima {
    I of4[8], of8[4], of16[2], of32;
  };
  static constexpr int kSquares = 16;  // vectors of a row
  static void raise_segments(const I* pairs, SegmentMaxima* most) {
    I x[8], y[4], z[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      x[i] = _mm256_hadd_epi32(pairs[2 * i], pairs[2 * i + 1]);
      most->of4[i] = max(most->of4[i], x[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      // The 128-bit lanes have chunks 0 and 2, and 1 and 3, of two segments.
      y[i] = _mm256_hadd_epi32(x[2 * i], x[2 * i + 1]);
      most->of8[i] = max(most->of8[i], y[i]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      z[i] = add(_mm256_permute2x128_si256(y[2 * i], y[2 * i + 1], 0x20),
                 _mm256_permute2x128_si256(y[2 * i], y[2 * i + 1], 0x31));
      most->of16[i] = max(most->of16[i], z[i]);
    }
    most->of32 = max(most->of32, _mm256_hadd_epi32(z[0], z[1]));
  }
  // Writes the largest norms of each segment, of 32, 16, 8 and 4 elements.
  static void store_segments(const SegmentMaxima& most, int32_t* out) {
    I x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = max_neighbours(most.of4[2 * i], most.of4[2 * i + 1]);
    store_segments(most.of32, out);
    store_segments(max_neighbours(most.of16[0], most.of16[1]), out + kSegments);
    store_segments_of_lanes(most.of8, out + 2 * kSegments);
    store_segments_of_lanes(x, out + 3 * kSegments);
  }

  // Takes a row as 16 vectors of sums over 2 elements. Raises the maxima to its sums over 4, 8 and
  // 16 elements and returns the sums over 16.
  struct Sums16 {
    I half[2];
  };
  static Sums16 raise_short(const I* pairs, I* maxima) {
    Sums16 sums;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      I x[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        x[j] = raise(6, _mm256_hadd_epi32(pairs[8 * i + 2 * j], pairs[8 * i + 2 * j + 1]), maxima);
      const I y0 = raise(5, _mm256_hadd_epi32(x[0], x[1]), maxima);
      const I y1 = raise(5, _mm256_hadd_epi32(x[2], x[3]), maxima);
      sums.half[i] = raise(
          4, add(_mm256_permute2x128_si256(y0, y1, 0x20), _mm256_permute2x128_si256(y0, y1, 0x31)),
          maxima);
    }
    return sums;
  }
  // Takes the sums over 16 elements of two rows. Raises the maxima to their sums over 32 and more.
  static void raise_long(Sums16 first, Sums16 second, I* maxima) {
    // The 128-bit lanes hold the chunks of 32 of one row in this order: 0 1 4 5 and 2 3 6 7.
    const I x = raise(3, _mm256_hadd_epi32(first.half[0], first.half[1]), maxima);
    const I y = raise(3, _mm256_hadd_epi32(second.half[0], second.half[1]), maxima);
    I sum = raise(2, _mm256_hadd_epi32(x, y), maxima);
    sum = raise(1, add(sum, _mm256_permute2x128_si256(sum, sum, 0x01)), maxima);
    raise(0, add(sum, _mm256_shuffle_epi32(sum, 0xb1)), maxima);
  }

  // Words with x[i] in the low half and y[i] in the high half.
  static I pair_words(const int16_t* x, const int16_t* y) {
    return join(load_half(x), load_half(y));
  }
  static void interleave_tail(const int16_t* x, const int16_t* y, int n, bool, int32_t* out) {
    for (int i = 0; i < n; ++i) out[i] = join_words(x[i], y[i]);
  }
  // Copies n < 16 elements.
  static void copy_tail(const int16_t* from, int n, int16_t* to) {
    if (n >= 8) {
      const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + n - 8));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), first);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n - 8), last);
      return;
    }
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }

  // Transposes 8 x 8 words.
  static void transpose(const int16_t* rows, int64_t stride, int32_t* out, int64_t out_stride) {
    I a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a[i] = load(rows + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      store(out + i * out_stride, _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
      store(out + (i + 4) * out_stride, _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
  }

 private:
  static I max_neighbours(I x, I y) {
    const __m256 a = _mm256_castsi256_ps(x), b = _mm256_castsi256_ps(y);
    return max(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)),
               _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)));
  }
  // The segments are in the order 0 1 4 5 2 3 6 7.
  static void store_segments(I x, int32_t* out) { store(out, _mm256_permute4x64_epi64(x, 0xd8)); }
  static void store_segments_of_lanes(const I* y, int32_t* out) {
    I z[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      z[i] = max(_mm256_permute2x128_si256(y[2 * i], y[2 * i + 1], 0x20),
                 _mm256_permute2x128_si256(y[2 * i], y[2 * i + 1], 0x31));
    store_segments(max_neighbours(z[0], z[1]), out);
  }
  static __m128i load_half(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static I join(__m128i low, __m128i high) {
    return _mm256_or_si256(_mm256_cvtepu16_epi32(low),
                           _mm256_slli_epi32(_mm256_cvtepu16_epi32(high), 16));
  }
  static __m128i half_to_nearest(const int16_t* p, int shift) {
    const __m128i x = load_half(p);
    if (shift == 0) return x;
    const __m128i down = _mm_sra_epi16(x, _mm_cvtsi32_si128(shift));
    const __m128i rest = _mm_and_si128(x, _mm_set1_epi16(static_cast<int16_t>((1 << shift) - 1)));
    const __m128i odd = _mm_and_si128(down, _mm_set1_epi16(1));
    const __m128i up = _mm_cmpgt_epi16(_mm_adds_epi16(rest, odd),
                                       _mm_set1_epi16(static_cast<int16_t>(1 << (shift - 1))));
    return _mm_sub_epi16(down, up);
  }
  static __m128i half_dithered(const int16_t* p, int shift, __m128i of_lane, uint16_t of_k) {
    const __m128i thresholds = _mm_xor_si128(of_lane, _mm_set1_epi16(static_cast<int16_t>(of_k)));
    const __m128i added = _mm_srl_epi16(thresholds, _mm_cvtsi32_si128(16 - shift));
    return _mm_sra_epi16(_mm_adds_epi16(load_half(p), added), _mm_cvtsi32_si128(shift));
  }
  static I raise(int level, I sums, I* maxima) {
    maxima[level] = max(maxima[level], sums);
    return sums;
  }
};
