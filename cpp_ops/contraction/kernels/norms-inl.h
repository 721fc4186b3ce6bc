// Norms that certify chain lengths. Included as isa/common-inl.h describes.

// S::squares rounds down and loses less than one unit per pair. One more unit per pair makes the
// norm an upper bound.
inline Norms round_up_norms(Norms norms) {
  for (int c = 0; c < kNorms; ++c) norms.chunk[c] += kBlock / 2 >> c;
  return norms;
}

template <class S>
inline typename S::Sums16 short_sums(const int16_t* row, int k, typename S::I* maxima) {
  using I = typename S::I;
  constexpr int kVectors = kBlock / 2 / S::kLanes, kPerChunk = 16 / S::kLanes;
  I squares[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i)
    squares[i] = i / kPerChunk * 32 < k ? S::squares(S::load(row + i * 2 * S::kLanes)) : S::zero();
  return S::raise_short(squares, maxima);
}

template <class S>
void norms_rows(const int16_t* rows, int64_t stride, int count, int k, Norms* out) {
  using I = typename S::I;
  I maxima[kNorms];
  for (I& m : maxima) m = S::zero();
  for (int r = 0; r < count; r += 2, rows += 2 * stride) {
    const auto first = short_sums<S>(rows, k, maxima);
    S::raise_long(first, r + 1 < count ? short_sums<S>(rows + stride, k, maxima) : first, maxima);
  }
  Norms norms;
  for (int c = 0; c < kNorms; ++c) norms.chunk[c] = S::reduce_max(maxima[c]);
  *out = round_up_norms(norms);
}

// Returns the sums of squares of the 2^Level words from `words` on. For each level from 1 to Level,
// raises maxima[kNorms - level] to the sums over 2^level words.
template <class S, int Level>
inline __attribute__((always_inline)) typename S::I squares(const int32_t* words, int64_t stride,
                                                            typename S::I* maxima) {
  using I = typename S::I;
  if constexpr (Level == 0) {
    return S::squares(S::load(words));
  } else {
    constexpr int kHalf = 1 << (Level - 1);
    const I first = squares<S, Level - 1>(words, stride, maxima);
    const I second = squares<S, Level - 1>(words + kHalf * stride, stride, maxima);
    const I sum = S::add(first, second);
    maxima[kNorms - Level] = S::max(maxima[kNorms - Level], sum);
    return sum;
  }
}

// For one vector of rows (or columns): raises lane i of maxima[c] to chunk[c] of row i.
template <class S>
void norms_lanes(const int32_t* words, int64_t stride, int pairs, typename S::I* maxima) {
  using I = typename S::I;
  constexpr int kLevel = 4, kWords = 1 << kLevel;  // larger sums need not be unrolled
  constexpr int kRest = kNorms - kLevel;           // maxima[0..kRest) belong to larger sums
  I sums[kRest], most[kNorms];
  for (I& s : sums) s = S::zero();
#pragma GCC unroll 8
  for (int c = 0; c < kNorms; ++c) most[c] = maxima[c];
  // A partial sum never exceeds the whole sum. So maxima may be taken early, and the last words may
  // be added one by one.
  for (int start = 0; start < pairs; start += kWords) {
    I sum;
    if (start + kWords <= pairs) {
      sum = squares<S, kLevel>(words + start * stride, stride, most);
    } else {
      I part[kLevel + 1];
      for (I& p : part) p = S::zero();
      for (int k = start; k < pairs; ++k) {
        const I square = squares<S, 0>(words + k * stride, stride, most);
        for (int level = 1; level <= kLevel; ++level) {
          part[level] = (k - start) % (1 << level) == 0 ? square : S::add(part[level], square);
          most[kNorms - level] = S::max(most[kNorms - level], part[level]);
        }
      }
      sum = part[kLevel];
    }
#pragma GCC unroll 4
    for (int c = 0; c < kRest; ++c) {
      const bool begins = start % (kBlock / 2 >> c) == 0;
      sums[c] = begins ? sum : S::add(sums[c], sum);
      most[c] = S::max(most[c], sums[c]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kNorms; ++c) maxima[c] = most[c];
}

template <class S>
void norms_pairs(const int32_t* words, int64_t stride, int count, int pairs, int group,
                 Norms* out) {
  using I = typename S::I;
  I maxima[kNorms];
  if (group % S::kLanes == 0) {
    for (int row = 0; row < count; row += group, ++out) {
      const int end = row + group < count ? row + group : count;
      for (I& m : maxima) m = S::zero();
      for (int i = row; i < end; i += S::kLanes) norms_lanes<S>(words + i, stride, pairs, maxima);
      for (int c = 0; c < kNorms; ++c) out->chunk[c] = S::reduce_max(maxima[c]);
      *out = round_up_norms(*out);
    }
    return;
  }
  Norms norms{};
  int rows = 0;  // that `norms` covers
  for (int row = 0; row < count; row += S::kLanes) {
    for (I& m : maxima) m = S::zero();
    norms_lanes<S>(words + row, stride, pairs, maxima);
    int32_t value[kNorms][S::kLanes];
    for (int c = 0; c < kNorms; ++c) S::store(value[c], maxima[c]);
    for (int i = 0; i < S::kLanes && row + i < count; ++i) {
      for (int c = 0; c < kNorms; ++c) norms.chunk[c] = larger(norms.chunk[c], value[c][i]);
      if (++rows < group) continue;
      *out++ = round_up_norms(norms);
      norms = Norms{};
      rows = 0;
    }
  }
  if (rows > 0) *out = round_up_norms(norms);
}
