// Norms that certify chain lengths. See kernels_common.h for how it is included.

inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

template <class S>
void norms_rows(const int16_t* rows, int64_t stride, int count, int k, Norms* out) {
  using I = typename S::I;
  constexpr int kPerChunk = 16 / S::kLanes;
  constexpr int kChunks = kBlock / 32;
  I max256 = S::zero(), max128 = S::zero(), max64 = S::zero(), max32 = S::zero(), pair = S::zero();
  for (int r = 0; r < count; ++r, rows += stride) {
    I square[kChunks * kPerChunk];
#pragma GCC unroll 16
    for (int i = 0; i < kChunks * kPerChunk; ++i) {
      square[i] = S::zero();
      if (i / kPerChunk * 32 < k) {
        const I m = S::magnitude(S::load(rows + i * 2 * S::kLanes));
        square[i] = S::pair_dot(m, m);
        pair = S::max(pair, square[i]);
      }
    }
    I sum = S::chunk_sums(square);
    max32 = S::max(max32, sum);
    sum = S::add_distance_1(sum);
    max64 = S::max(max64, sum);
    sum = S::add_distance_2(sum);
    max128 = S::max(max128, sum);
    max256 = S::max(max256, S::add_distance_4(sum));
  }
  out->chunk[0] = S::reduce_max(max256);
  out->chunk[1] = S::reduce_max(max128);
  out->chunk[2] = S::reduce_max(max64);
  out->chunk[3] = S::reduce_max(max32);
  out->pair = S::reduce_max(pair);
}

// One vector of rows (or columns): lane i of maxima[0..4] is row i's Norms.
template <class S>
void norms_lanes(const int32_t* words, int64_t stride, int pairs, typename S::I* maxima) {
  using I = typename S::I;
  I max[4], pair = S::zero();
  for (I& m : max) m = S::zero();
  I sum256 = S::zero(), sum128 = S::zero(), sum64 = S::zero();
  for (int start = 0; start < pairs; start += 16) {
    const int end = start + 16 < pairs ? start + 16 : pairs;
    I sum32 = S::zero();
    for (int k = start; k < end; ++k) {
      const I m = S::magnitude(S::load(words + k * stride));
      const I square = S::pair_dot(m, m);
      pair = S::max(pair, square);
      sum32 = S::add(sum32, square);
    }
    max[3] = S::max(max[3], sum32);
    sum64 = S::add(sum64, sum32);
    max[2] = S::max(max[2], sum64);
    sum128 = S::add(sum128, sum32);
    max[1] = S::max(max[1], sum128);
    sum256 = S::add(sum256, sum32);
    // A partial sum never exceeds the whole, so maxima may be taken early.
    if (end % 32 == 0) sum64 = S::zero();
    if (end % 64 == 0) sum128 = S::zero();
  }
  maxima[0] = sum256;
  maxima[1] = max[1];
  maxima[2] = max[2];
  maxima[3] = max[3];
  maxima[4] = pair;
}

template <class S>
void norms_pairs(const int32_t* words, int64_t stride, int count, int pairs, int group,
                 Norms* out) {
  using I = typename S::I;
  for (int i = 0; i < (count + group - 1) / group; ++i) out[i] = Norms{};
  for (int row = 0; row < count; row += S::kLanes) {
    I maxima[5];
    norms_lanes<S>(words + row, stride, pairs, maxima);
    if (row / group == (row + S::kLanes - 1) / group) {
      Norms& norms = out[row / group];
      for (int c = 0; c < 4; ++c) norms.chunk[c] = larger(norms.chunk[c], S::reduce_max(maxima[c]));
      norms.pair = larger(norms.pair, S::reduce_max(maxima[4]));
      continue;
    }
    int32_t value[5][S::kLanes];
    for (int c = 0; c < 5; ++c) S::store(value[c], maxima[c]);
    for (int i = 0; i < S::kLanes && row + i < count; ++i) {
      Norms& norms = out[(row + i) / group];
      for (int c = 0; c < 4; ++c) norms.chunk[c] = larger(norms.chunk[c], value[c][i]);
      norms.pair = larger(norms.pair, value[4][i]);
    }
  }
}
