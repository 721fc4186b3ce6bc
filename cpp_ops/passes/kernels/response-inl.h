// Local response normalization of pixels. Included as isa/common-inl.h describes.

// The rows of memory for one pixel at a time; they stay in the first-level cache. The margins of
// `padded` are zero and stand for channels that do not exist.
struct ResponseSpace {
  ResponseSpace(float* space, int64_t channels, int64_t reach)
      : padded(space),
        inner(space + reach),
        sums(padded + response_row(channels, reach)),
        scale(sums + response_row(channels, reach)) {}

  float* padded;
  float* inner;  // the first channel's place in `padded`
  float* sums;
  float* scale;
};

// Sets sums[c] to the sum of the padded row over the channels around c.
inline void sum_windows(const ResponseSpace& space, int64_t channels, int64_t reach) {
  for (int64_t c = 0; c < channels; c += kFloats) {
    Floats sum = load_as<Floats>(space.padded + c);
    for (int64_t i = 1; i <= 2 * reach; ++i) sum += load_as<Floats>(space.padded + c + i);
    store_as(space.sums + c, sum);
  }
}

inline void sum_squares(const float* x, const ResponseSpace& space, int64_t channels,
                        int64_t reach) {
  for (int64_t c = 0; c < channels; ++c) space.inner[c] = x[c] * x[c];
  sum_windows(space, channels, reach);
}

void local_response(const Response& response, const float* x, int64_t rows, int64_t channels,
                    float* memory, float* out) {
  const ResponseSpace space(memory, channels, response.reach);
  for (int64_t row = 0; row < rows; ++row, x += channels, out += channels) {
    sum_squares(x, space, channels, response.reach);
    for (int64_t c = 0; c < channels; ++c) {
      const float inverse = 1 / __builtin_sqrtf(response.k + response.alpha * space.sums[c]);
      out[c] = x[c] * (inverse * __builtin_sqrtf(inverse));
    }
  }
}

void local_response_gradient(const Response& response, const float* g, const float* x, int64_t rows,
                             int64_t channels, float* memory, float* out) {
  const ResponseSpace space(memory, channels, response.reach);
  const float factor = -1.5F * response.alpha;  // 1.5: twice the power 0.75
  for (int64_t row = 0; row < rows; ++row, g += channels, x += channels, out += channels) {
    sum_squares(x, space, channels, response.reach);
    for (int64_t c = 0; c < channels; ++c) {
      const float inverse = 1 / __builtin_sqrtf(response.k + response.alpha * space.sums[c]);
      space.scale[c] = inverse * __builtin_sqrtf(inverse);
      space.inner[c] = g[c] * x[c] * space.scale[c] * (inverse * inverse);
    }
    sum_windows(space, channels, response.reach);
    for (int64_t c = 0; c < channels; ++c)
      out[c] = g[c] * space.scale[c] + factor * x[c] * space.sums[c];
  }
}
