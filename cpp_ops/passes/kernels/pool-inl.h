// Maxima over windows and their gradient, one output pixel at a time. Included as isa/common-inl.h
// describes.

// IEEE 754's maximum: NaN if either is NaN, and 0 is greater than -0.
template <class V, class I>
inline V maximum(V a, V b) {
  const V greater = b > a || b != b ? b : a;
  const I both = load_as<I>(&a) & load_as<I>(&b);
  return a == b ? load_as<V>(&both) : greater;  // equal numbers have equal bits, except zeros
}

template <class V, class I>
inline void max_at(const float* const* taps, int count, int64_t c, float* out) {
  V best = load_as<V>(taps[0] + c);
  for (int k = 1; k < count; ++k) best = maximum<V, I>(best, load_as<V>(taps[k] + c));
  store_as(out + c, best);
}

void max_of_taps(const float* const* taps, int count, int64_t channels, float* out) {
  int64_t c = 0;
  for (; c + kFloats <= channels; c += kFloats) max_at<Floats, Ints>(taps, count, c, out);
  for (; c < channels; ++c) max_at<float, int32_t>(taps, count, c, out);
}

// Adds the gradient to the first of the greatest values. Comparisons with a NaN fail, so if there
// is a NaN, this is the first of the greatest after the last NaN.
template <class V, class I>
inline void add_to_max_at(const float* const* taps, float* const* gradients, int count, int64_t c,
                          const float* g) {
  V best = load_as<V>(taps[0] + c);
  I index = {};
  for (int k = 1; k < count; ++k) {
    const V x = load_as<V>(taps[k] + c);
    const auto keep = best >= x;
    best = keep ? best : x;
    index = keep ? index : I{} + k;
  }
  const V gradient = load_as<V>(g + c);
  for (int k = 0; k < count; ++k) {
    const V sum = load_as<V>(gradients[k] + c) + (index == I{} + k ? gradient : V{});
    store_as(gradients[k] + c, sum);
  }
}

void add_to_max_of_taps(const float* const* taps, float* const* gradients, int count,
                        int64_t channels, const float* g) {
  int64_t c = 0;
  for (; c + kFloats <= channels; c += kFloats)
    add_to_max_at<Floats, Ints>(taps, gradients, count, c, g);
  for (; c < channels; ++c) add_to_max_at<float, int32_t>(taps, gradients, count, c, g);
}
