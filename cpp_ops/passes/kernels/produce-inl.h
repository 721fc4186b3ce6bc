// Normalized and rectified numbers, and gradients of normalizations, row by row. Included as
// isa/common-inl.h describes.

// Calls whole(channel) for each vector of channels, and last(channel) for those that do not fill
// one.
template <class Whole, class Last>
inline void for_channels(int64_t channels, Whole whole, Last last) {
  int64_t c = 0;
  for (; c + kFloats <= channels; c += kFloats) whole(c);
  for (; c < channels; ++c) last(c);
}

// A row of RectifiedRows, at a channel.
template <class V, class Bits, bool kSum>
inline void rectified_at(const RectifiedRows& row, int64_t c) {
  V sum = fused(load_as<V>(row.x + c) - load_as<V>(row.mean + c), load_as<V>(row.scale + c),
                load_as<V>(row.shift + c));
  if constexpr (kSum) sum = sum + load_as<V>(row.residual + c);
  const V y = sum <= V{} ? V{} : sum;  // keeps NaN, turns -0 into 0
  store_as(row.out + c, y);
  if (row.positive != nullptr) store_truth(row.positive + c, y > V{});
  if constexpr (kSum) {
    // The bits of a NaN are the greatest.
    const Bits bits = load_as<Bits>(&y) & 0x7fffffff, most = load_as<Bits>(row.high_bits + c);
    const V least = load_as<V>(row.low + c);
    store_as(row.high_bits + c, bits > most ? bits : most);
    store_as(row.low + c, y < least ? y : least);
  }
}

template <bool kSum>
inline void rectified_rows(const RectifiedRows& at, int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r) {
    const RectifiedRows row = at.from(r, 0);
    for_channels(
        channels, [&](int64_t c) { rectified_at<Floats, Ints, kSum>(row, c); },
        [&](int64_t c) { rectified_at<float, int32_t, kSum>(row, c); });
  }
}

void rectified(const RectifiedRows& at, int64_t rows, int64_t channels) {
  rectified_rows<false>(at, rows, channels);
}

void rectified_sum(const RectifiedRows& at, int64_t rows, int64_t channels) {
  rectified_rows<true>(at, rows, channels);
}

// A row of GradientRows, at a channel.
template <class V, bool kRectified>
inline void gradient_at(const GradientRows& row, int64_t c) {
  const V x = load_as<V>(row.x + c), scale = load_as<V>(row.scale + c);
  V g = load_as<V>(row.g + c);
  if constexpr (kRectified)
    g = fused(x - load_as<V>(row.mean + c), scale, load_as<V>(row.shift + c)) > V{} ? g : V{};
  store_as(row.out + c,
           fused(load_as<V>(row.slope + c), x, fused(g, scale, load_as<V>(row.offset + c))));
}

template <bool kRectified>
inline void gradient_rows(const GradientRows& at, int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r) {
    const GradientRows row = at.from(r, 0);
    for_channels(
        channels, [&](int64_t c) { gradient_at<Floats, kRectified>(row, c); },
        [&](int64_t c) { gradient_at<float, kRectified>(row, c); });
  }
}

void gradient(const GradientRows& at, int64_t rows, int64_t channels) {
  if (at.mean != nullptr)
    gradient_rows<true>(at, rows, channels);
  else
    gradient_rows<false>(at, rows, channels);
}

template <class V>
inline void masked_at(const MaskedRows& row, int64_t c) {
  store_as(row.out + c, load_truth<V>(row.positive + c) ? load_as<V>(row.x + c) : V{});
}

void masked(const MaskedRows& at, int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r) {
    const MaskedRows row = at.from(r, 0);
    for_channels(
        channels, [&](int64_t c) { masked_at<Floats>(row, c); },
        [&](int64_t c) { masked_at<float>(row, c); });
  }
}
