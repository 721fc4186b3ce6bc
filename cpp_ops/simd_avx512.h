// AVX-512 vectors for the kernels; `Dot` adds the dot products of int16 pairs to int32 lanes.
// Included inside an unnamed namespace by files compiled for AVX-512.

template <class Dot>
struct Avx512 {
  using I = __m512i;
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kStripVectors = 4;  // 6 x 4 sums, 4 of B and the broadcast of A: 29 of 32
  static constexpr int kShortChain = 64;   // words; until then float32 sums stay in registers

  static I zero() { return _mm512_setzero_si512(); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
  // Keeps the compiler from knowing the value.
  template <class V>
  static void hide(V& x) {
    asm volatile("" : "+v"(x));
  }
  static void dot(I& sum, I a, I b) { Dot::add(sum, a, b); }
  static I pair_dot(I a, I b) { return _mm512_madd_epi16(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  static int32_t reduce_max(I a) { return _mm512_reduce_max_epi32(a); }
  // (|m| + 15) >> 4
  static I magnitude(I m) {
    return _mm512_srli_epi16(_mm512_add_epi16(_mm512_abs_epi16(m), _mm512_set1_epi16(15)), 4);
  }

  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static F load_float(const float* p) { return _mm512_loadu_ps(p); }
  static void store_float(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void stream_float(float* p, F x) { _mm512_stream_ps(p, x); }
  static F broadcast_float(float x) { return _mm512_set1_ps(x); }
  static F add_float(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul_float(F a, F b) { return _mm512_mul_ps(a, b); }
  static void fma_float(F& sum, F a, F b) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  // Lane sums of 8 vectors (one 32-element chunk each): lanes 0-3 hold those of v[0..3], lanes 8-11
  // those of v[4..7], and the other lanes repeat them.
  static I chunk_sums(const I* v) {
    const I x0 = halves(v[0], v[1]), x1 = halves(v[2], v[3]);
    const I x2 = halves(v[4], v[5]), x3 = halves(v[6], v[7]);
    const I y0 = add(_mm512_unpacklo_epi64(x0, x1), _mm512_unpackhi_epi64(x0, x1));
    const I y1 = add(_mm512_unpacklo_epi64(x2, x3), _mm512_unpackhi_epi64(x2, x3));
    const I z = add(_mm512_shuffle_i32x4(y0, y1, 0x88), _mm512_shuffle_i32x4(y0, y1, 0xdd));
    return add(z, _mm512_shuffle_i32x4(z, z, 0xb1));
  }
  // Adds to each chunk's sum that of its neighbour at the given distance.
  static I add_distance_1(I x) { return add(x, _mm512_shuffle_epi32(x, _MM_PERM_CDAB)); }
  static I add_distance_2(I x) { return add(x, _mm512_shuffle_epi32(x, _MM_PERM_BADC)); }
  static I add_distance_4(I x) { return add(x, _mm512_shuffle_i32x4(x, x, 0x4e)); }

  // Words of x[i] (low half) and y[i] (high half).
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
  static I halves(I x, I y) {
    return add(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
  }
  static I join(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
};
