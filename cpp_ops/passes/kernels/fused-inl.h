// a * b + c, rounded once. Included as isa/common-inl.h describes. The compiler may not contract
// products and additions by itself, so that paths without the instruction have the same bits.

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  Floats result = c;
  for (int lane = 0; lane < kFloats; ++lane) result[lane] = fused(a[lane], b[lane], c[lane]);
  return result;
#endif
}
