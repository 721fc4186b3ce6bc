// Results of comparisons as bools in memory, and back. Included as isa/common-inl.h describes. GCC
// 12 converts between bytes and wider numbers one by one.

// Stores the result of a comparison.
inline void store_truth(bool* to, bool holds) { *to = holds; }

inline void store_truth(bool* to, Ints holds) {
#if defined(__AVX512F__)
  const __mmask16 lanes = _mm512_movepi32_mask(reinterpret_cast<__m512i>(holds));
  store_as(to, _mm_maskz_set1_epi8(lanes, 1));
#elif defined(__AVX2__)
  const auto words = reinterpret_cast<__m256i>(holds);
  const __m128i shorts =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i ones = _mm_and_si128(_mm_packs_epi16(shorts, shorts), _mm_set1_epi8(1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), ones);
#else
  store_as(to, __builtin_convertvector(holds & 1, Bytes));
#endif
}

// The numbers from p on that are true, as the result of a comparison of V.
template <class V>
inline auto load_truth(const bool* p) {
  if constexpr (sizeof(V) == sizeof(float)) {
    return *p;
  } else {
#if defined(__AVX512F__)
    const auto bytes = load_as<__m128i>(p);
    return reinterpret_cast<Ints>(_mm512_movm_epi32(_mm_test_epi8_mask(bytes, bytes)));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(bytes)) > 0;
#else
    return __builtin_convertvector(load_as<Bytes>(p), Ints) != 0;
#endif
  }
}
