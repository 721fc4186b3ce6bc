// AVX-512 vectors for the kernels; `Dot` adds the dot products of int16 pairs to int32 lanes.
// Included inside an unnamed namespace by files compiled for AVX-512.

#include "isa/common-inl.h"

template <class Dot>
struct Avx512 {
  using I = __m512i;
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr bool kFused = Dot::kFused;
  static constexpr int kStripVectors = 4;  // 6 x 4 sums, 4 of B, 1 of A: 29 of 32 registers
  static constexpr bool kNarrow = true;
  static constexpr int kShortChain = 64;  // words; up to this, float32 sums stay in registers

  static I zero() { return _mm512_setzero_si512(); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, I x) { _mm512_storeu_si512(p, x); }
  // Repeats four words four times.
  static I broadcast_quad(const int32_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
  // Hides the value from the optimizer.
  template <class V>
  static void hide(V& x) {
    asm volatile("" : "+v"(x));
  }
  static void dot(I& sum, I a, I b) { Dot::add(sum, a, b); }
  static I pair_dot(I a, I b) { return _mm512_madd_epi16(a, b); }
  // Words with p[i] in the low half and zero in the high half.
  static I low_halves(const int16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  // Replaces INT32_MIN by INT32_MAX.
  static I lowest_to_largest(I x) {
    const __mmask16 lowest = _mm512_cmpeq_epi32_mask(x, _mm512_set1_epi32(INT32_MIN));
    return _mm512_mask_mov_epi32(x, lowest, _mm512_set1_epi32(INT32_MAX));
  }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  // Sums of neighbouring lanes: each 128 bits of the result hold two of x, then two of y.
  static I add_neighbours(I x, I y) {
    const __m512 a = _mm512_castsi512_ps(x), b = _mm512_castsi512_ps(y);
    return add(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
               _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
  }
  static int32_t reduce_max(I a) { return _mm512_reduce_max_epi32(a); }
  static I squares(I m) { return _mm512_srli_epi32(_mm512_madd_epi16(m, m), kNormShift); }

  // 16-bit lanes, shifted right by 1 to 15 bits and rounded.
  static I shift_to_nearest(I x, int shift) {
    const I down = _mm512_sra_epi16(x, _mm_cvtsi32_si128(shift));
    const I rest = _mm512_and_si512(x, _mm512_set1_epi16(static_cast<int16_t>((1 << shift) - 1)));
    const I odd = _mm512_and_si512(down, _mm512_set1_epi16(1));
    const __mmask32 up = _mm512_cmpgt_epi16_mask(
        _mm512_adds_epi16(rest, odd), _mm512_set1_epi16(static_cast<int16_t>(1 << (shift - 1))));
    return _mm512_mask_add_epi16(down, up, down, _mm512_set1_epi16(1));
  }
  static I shift_dithered(I x, I thresholds, uint16_t other, int shift) {
    const I both = _mm512_xor_si512(thresholds, _mm512_set1_epi16(static_cast<int16_t>(other)));
    const I added = _mm512_srl_epi16(both, _mm_cvtsi32_si128(16 - shift));
    return _mm512_sra_epi16(_mm512_adds_epi16(x, added), _mm_cvtsi32_si128(shift));
  }

  // The words of `pair_words`, with each half shifted right by a number of bits from 0 to 15.
  static I pair_to_nearest(const int16_t* x, const int16_t* y, int shift_x, int shift_y) {
    const I words = pair_words(x, y);
    const auto low_bits = [](int shift) { return (1 << shift) - 1; };
    // Nothing is more than the largest number, so a shift of 0 does not round up.
    const auto half = [](int shift) { return shift == 0 ? INT16_MAX : 1 << (shift - 1); };
    const I down = _mm512_srav_epi16(words, both(shift_x, shift_y));
    const I rest = _mm512_and_si512(words, both(low_bits(shift_x), low_bits(shift_y)));
    const I odd = _mm512_and_si512(down, _mm512_set1_epi16(1));
    const __mmask32 up =
        _mm512_cmpgt_epi16_mask(_mm512_adds_epi16(rest, odd), both(half(shift_x), half(shift_y)));
    return _mm512_mask_add_epi16(down, up, down, _mm512_set1_epi16(1));
  }
  static I pair_dithered(const int16_t* x, const int16_t* y, int shift_x, int shift_y,
                         uint16_t of_x, uint16_t of_y, size_t lane) {
    const I thresholds = _mm512_xor_si512(load(&kThresholds.of_lanes[lane]), both(of_x, of_y));
    const I added = _mm512_srlv_epi16(thresholds, both(16 - shift_x, 16 - shift_y));
    return _mm512_srav_epi16(_mm512_adds_epi16(pair_words(x, y), added), both(shift_x, shift_y));
  }

  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static F load_float(const float* p) { return _mm512_loadu_ps(p); }
  static void store_float(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void stream_float(float* p, F x) { _mm512_stream_ps(p, x); }
  static F broadcast_float(float x) { return _mm512_set1_ps(x); }
  static F add_float(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul_float(F a, F b) { return _mm512_mul_ps(a, b); }
  static F sub_float(F a, F b) { return _mm512_sub_ps(a, b); }
  static F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float reduce_max_float(F x) { return _mm512_reduce_max_ps(x); }
  // The larger magnitude; `a` is not negative.
  static F max_abs(F a, F b) { return _mm512_range_ps(a, b, 0b1011); }
  static F clip(F x, F most) {
    return _mm512_max_ps(_mm512_min_ps(x, most), _mm512_sub_ps(_mm512_setzero_ps(), most));
  }
  // Clears the low 8 bits.
  static F cut(F x) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-256)));
  }
  // 2^(x + y).
  static F power(I x, int32_t y) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(y + 127)), 23));
  }
  static F load_shorts(const int16_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static I round_float(F x) { return _mm512_cvtps_epi32(x); }
  static void store_shorts(int16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }
  // Words with these halves.
  static I join(I low, I high) {
    return _mm512_mask_mov_epi16(_mm512_slli_epi32(high, 16), 0x55555555, low);
  }
  static void fma_float(F& sum, F a, F b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  // What add_scaled multiplies by, made of exponents.
  static EightFloats scales(Eight exponents) {
    return __builtin_convertvector(exponents, EightFloats);
  }
  // total + sum * 2^e, where e is in `scale`. The product is exact.
  static F add_scaled(F total, I sum, F scale) {
    return _mm512_add_ps(total, _mm512_scalef_ps(_mm512_cvtepi32_ps(sum), scale));
  }
  // The same with one scale in memory. GCC 12 would hold it in a register, of which there is none.
  static const float* scale_at(const float* scale) { return scale; }
  static F add_scaled(F total, I sum, const float* scale) {
    return _mm512_add_ps(total, scaled(_mm512_cvtepi32_ps(sum), scale));
  }
  // x * 2^e.
  static F scaled(F x, const float* e) {
    asm("vscalefps %1%{1to16%}, %0, %0" : "+v"(x) : "m"(*e));
    return x;
  }
  static constexpr bool kScalesTotals = true;
  // Repeats four numbers four times.
  static F broadcast_quad_float(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }

  // Norms of segments, from vectors of 16 sums over 2 elements: one for each segment.
  struct SegmentMaxima {
    I of4[4], of8[2], of16, of32;
  };
  static constexpr int kSquares = 8;  // vectors of a row
  static void raise_segments(const I* pairs, SegmentMaxima* most) {
    I x[4], y[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = add_neighbours(pairs[2 * i], pairs[2 * i + 1]);
      most->of4[i] = max(most->of4[i], x[i]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      // 128-bit lane c has chunk c of four segments.
      y[i] = add_neighbours(x[2 * i], x[2 * i + 1]);
      most->of8[i] = max(most->of8[i], y[i]);
    }
    const I z = add_lanes(y[0], y[1]);
    most->of16 = max(most->of16, z);
    most->of32 = max(most->of32, add(z, swap_lanes(z)));
  }
  // Writes the largest norms of each segment, of 32, 16, 8 and 4 elements.
  static void store_segments(const SegmentMaxima& most, int32_t* out) {
    const I* x = most.of4;
    store_segments(most.of32, out);
    store_segments(max(most.of16, swap_lanes(most.of16)), out + kSegments);
    store_segments_of_lanes(most.of8[0], most.of8[1], out + 2 * kSegments);
    store_segments_of_lanes(max_neighbours(x[0], x[1]), max_neighbours(x[2], x[3]),
                            out + 3 * kSegments);
  }

  // Takes a row as 8 vectors of sums over 2 elements. Raises the maxima to its sums over 4, 8 and
  // 16 elements and returns the sums over 16.
  using Sums16 = I;
  static Sums16 raise_short(const I* pairs, I* maxima) {
    I x[4], y[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      x[i] = raise(6, add_neighbours(pairs[2 * i], pairs[2 * i + 1]), maxima);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) y[i] = raise(5, add_neighbours(x[2 * i], x[2 * i + 1]), maxima);
    // 128-bit lanes 0 and 1 come from vectors 0 to 3, lanes 2 and 3 from vectors 4 to 7.
    return raise(4, add_lanes(y[0], y[1]), maxima);
  }
  // Takes the sums over 16 elements of two rows. Raises the maxima to their sums over 32 and more.
  static void raise_long(Sums16 first, Sums16 second, I* maxima) {
    I sum = raise(3, add_lanes(first, second), maxima);
    sum = raise(2, add(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB)), maxima);
    sum = raise(1, add(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC)), maxima);
    raise(0, add(sum, _mm512_shuffle_i32x4(sum, sum, 0xb1)), maxima);
  }

  // Words with x[i] in the low half and y[i] in the high half.
  static I pair_words(const int16_t* x, const int16_t* y) {
    return join(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y)));
  }
  // Interleaves n < kLanes elements. Unless `exact`, may write a whole vector, since masked stores
  // are slow on some CPUs.
  static void interleave_tail(const int16_t* x, const int16_t* y, int n, bool exact, int32_t* out) {
    const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
    const I words = join(_mm256_maskz_loadu_epi16(mask, x), _mm256_maskz_loadu_epi16(mask, y));
    if (exact)
      _mm512_mask_storeu_epi32(out, mask, words);
    else
      store(out, words);
  }
  // Copies n < 2 * kLanes elements; may write a whole vector.
  static void copy_tail(const int16_t* from, int n, int16_t* to) {
    store(to, _mm512_maskz_loadu_epi16((1u << n) - 1, from));
  }

  // Transposes 16 x 16 words.
  static void transpose(const int16_t* rows, int64_t stride, int32_t* out, int64_t out_stride) {
    I a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = load(rows + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
      b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
      b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      store(out + i * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
      store(out + (i + 4) * out_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
      store(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
      store(out + (i + 12) * out_stride, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
  }

 private:
  static I max_neighbours(I x, I y) {
    const __m512 a = _mm512_castsi512_ps(x), b = _mm512_castsi512_ps(y);
    return max(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
               _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
  }
  static I swap_lanes(I x) { return _mm512_shuffle_i32x4(x, x, 0xb1); }
  // Lanes 0 and 2.
  static void store_segments(I x, int32_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_castsi512_si256(_mm512_shuffle_i32x4(x, x, 0x08)));
  }
  static void store_segments_of_lanes(I x, I y, int32_t* out) {
    const I z = max(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd));
    store_segments(max(z, swap_lanes(z)), out);
  }
  // Words with these halves.
  static I both(int low, int high) {
    return _mm512_set1_epi32(join_words(static_cast<int16_t>(low), static_cast<int16_t>(high)));
  }
  static I raise(int level, I sums, I* maxima) {
    maxima[level] = max(maxima[level], sums);
    return sums;
  }
  // The sums of neighbouring 128-bit lanes, first of x, then of y.
  static I add_lanes(I x, I y) {
    return add(_mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xdd));
  }
  static I join(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
};
