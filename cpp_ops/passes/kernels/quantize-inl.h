// Quantization of float32 numbers. Included as isa/common-inl.h describes.

int32_t largest_magnitude(const float* x, int64_t count) {
  constexpr int kVectors = 4;
  Ints most[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * kFloats <= count; i += kVectors * kFloats)
    for (int v = 0; v < kVectors; ++v) {
      const Ints bits = load_as<Ints>(x + i + v * kFloats) & 0x7fffffff;
      most[v] = bits > most[v] ? bits : most[v];
    }
  int32_t result = 0;
  for (const Ints& vector : most)
    for (int lane = 0; lane < kFloats; ++lane)
      result = vector[lane] > result ? vector[lane] : result;
  for (; i < count; ++i) {
    const int32_t bits = load_as<int32_t>(x + i) & 0x7fffffff;
    result = bits > result ? bits : result;
  }
  return result;
}

// Rounds x to multiples of 2^exponent, ties to even, within +-limit. first * second is 2^-exponent.
// The scaled numbers must be finite and below 2^16.
void quantize(const float* x, int64_t count, float first, float second, int32_t limit,
              int16_t* out) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: its last bit is worth one
  const Ints most = Ints{} + limit;
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) {
    const Floats y = load_as<Floats>(x + i) * first * second;
    Ints m = __builtin_convertvector((y + kRound) - kRound, Ints);
    m = m > most ? most : m;
    m = m < -most ? -most : m;
    store_as(out + i, __builtin_convertvector(m, Shorts));
  }
  for (; i < count; ++i) {
    const auto m = static_cast<int32_t>((x[i] * first * second + kRound) - kRound);
    out[i] = static_cast<int16_t>(m > limit ? limit : m < -limit ? -limit : m);
  }
}
