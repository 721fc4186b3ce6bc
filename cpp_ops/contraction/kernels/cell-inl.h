// The register-tiled microkernels. Included as isa/common-inl.h describes.

// Computes the exact int32 sums of MR x NV vectors over `chain` words of k.
template <class S, int MR, int NV>
inline __attribute__((always_inline)) void add_chain(const int32_t* a, int64_t a_row,
                                                     int64_t a_pair, const int32_t* b,
                                                     int64_t b_pair, int chain,
                                                     typename S::I (&sum)[MR][NV]) {
  using I = typename S::I;
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sum[i][j] = S::zero();
  for (int k = 0; k < chain; ++k, a += a_pair, b += b_pair) {
    I bk[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) bk[j] = S::load(b + j * S::kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      const I ak = S::broadcast(a + i * a_row);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) S::dot(sum[i][j], ak, bk[j]);
    }
  }
}

// Computes the sums of the next chain of `left` words, of up to `chain`, and goes on behind it.
template <class S, int MR, int NV>
inline __attribute__((always_inline)) void take_chain(const CellArgs& t, int chain, int* left,
                                                      const int32_t** a, const int32_t** b,
                                                      typename S::I (&sum)[MR][NV]) {
  const int words = *left < chain ? *left : chain;
  *left -= words;
  add_chain<S>(*a, t.a_row, t.a_pair, *b, t.columns, words, sum);
  *a += words * t.a_pair;
  *b += words * int64_t{t.columns};
}

// Adds the sum of a cell's chains to row i of the running sums, from `column` on, and multiplies
// the result by the row's number in `last`, if that is not null. Applies the scales of `t`.
template <class S>
inline __attribute__((always_inline)) void store_output(const CellArgs& t, const float* last, int i,
                                                        int column, typename S::F total) {
  if (t.row_scales != nullptr)
    total = S::mul_float(total, S::mul_float(S::broadcast_float(t.row_scales[i]),
                                             S::load_float(t.column_scales + column)));
  typename S::F sum = S::add_float(S::load_float(t.in[i] + column), total);
  if (last != nullptr) {
    sum = S::mul_float(sum, S::broadcast_float(last[i]));
    if (t.stream) return S::stream_float(t.out[i] + column, sum);
  }
  S::store_float(t.out[i] + column, sum);
}

// For long chains. The int32 sums fill the registers, so the float32 sums of several chains are in
// memory.
template <class S, int MR, int NV>
__attribute__((noinline)) void long_chains(const CellArgs& t, int column) {
  const int32_t* a = t.a;
  const int32_t* b = t.b + column;
  typename S::I sum[MR][NV];
  // Without an instruction for the whole product, the compiler has no register to spare for this.
  if (S::kFused && t.pairs <= t.chain) {
    add_chain<S>(a, t.a_row, t.a_pair, b, t.columns, t.pairs, sum);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j)
        store_output<S>(t, t.final_scales, i, column + j * S::kLanes, S::to_float(sum[i][j]));
    return;
  }
  // A local array would go to registers, which are taken.
  float* const totals = t.memory + column;
  for (int left = t.pairs; left > 0;) {
    const bool first = left == t.pairs;
    take_chain<S>(t, t.chain, &left, &a, &b, sum);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        float* const total = totals + i * kPanelColumns + j * S::kLanes;
        const typename S::F x = S::to_float(sum[i][j]);
        S::store_float(total, first ? x : S::add_float(S::load_float(total), x));
      }
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j)
      store_output<S>(t, t.final_scales, i, column + j * S::kLanes,
                      S::load_float(totals + i * kPanelColumns + j * S::kLanes));
}

// Adds the sums of chains of kChain words to float32 sums, as many chains as `left` words fill. A
// row's chain ends before the next row's begins, so few int32 sums are alive at a time, and there
// are registers for the words of B.
template <class S, int kChain, int MR, int NV>
inline __attribute__((always_inline)) void add_chains(const CellArgs& t, int* left,
                                                      const int32_t** a, const int32_t** b,
                                                      typename S::F (&total)[MR][NV]) {
  // Hidden from the compiler, which would hold the address of each row, and more than it has
  // registers for.
  const int32_t *upper[kChain], *lower[kChain];
#pragma GCC unroll 8
  for (int k = 0; k < kChain; ++k) {
    upper[k] = *a + k * t.a_pair;
    lower[k] = upper[k] + 3 * t.a_row;
    asm("" : "+r"(upper[k]), "+r"(lower[k]));
  }
  const int64_t row = t.a_row, step = kChain * t.a_pair, columns = t.columns;
  const int32_t* at = *b;
  int words = *left;
  for (; words >= kChain; words -= kChain, at += kChain * columns) {
    typename S::I bk[kChain][NV];
#pragma GCC unroll 8
    for (int k = 0; k < kChain; ++k)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) bk[k][j] = S::load(at + k * columns + j * S::kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      typename S::I sum[NV];
#pragma GCC unroll 8
      for (int k = 0; k < kChain; ++k) {
        const typename S::I ak = S::broadcast((i < 3 ? upper : lower)[k] + i % 3 * row);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j)
          if (k == 0)
            sum[j] = S::pair_dot(ak, bk[k][j]);
          else
            S::dot(sum[j], ak, bk[k][j]);
      }
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) total[i][j] = S::add_float(total[i][j], S::to_float(sum[j]));
    }
#pragma GCC unroll 8
    for (int k = 0; k < kChain; ++k) {
      upper[k] += step;
      lower[k] += step;
      asm("" : "+r"(upper[k]), "+r"(lower[k]));
    }
  }
  *left = words;
  *a = upper[0];
  *b = at;
}

// For short chains, which end often. With half as many columns, the float32 sums stay in registers.
// If kChain is not zero, it is the length of chains.
template <class S, int kChain, int MR, int NV>
__attribute__((noinline)) void short_chains(const CellArgs& t, int column) {
  const int32_t* a = t.a;
  const int32_t* b = t.b + column;
  typename S::F total[MR][NV];
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) total[i][j] = S::broadcast_float(0);
  int left = t.pairs;
  if constexpr (kChain > 0) add_chains<S, kChain>(t, &left, &a, &b, total);
  while (left > 0) {
    typename S::I sum[MR][NV];
    take_chain<S>(t, t.chain, &left, &a, &b, sum);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) total[i][j] = S::add_float(total[i][j], S::to_float(sum[i][j]));
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      store_output<S>(t, t.final_scales, i, column + j * S::kLanes, total[i][j]);
}

// Walks the cell in strips of half of kStripVectors vectors; the last strip may be narrower.
template <class S, int kChain, int MR>
void short_chain_rows(const CellArgs& t) {
  constexpr int kVectors = S::kStripVectors / 2, kStrip = kVectors * S::kLanes;
  int column = 0;
  for (; column + kStrip <= t.columns; column += kStrip)
    short_chains<S, kChain, MR, kVectors>(t, column);
  if constexpr (kStrip > kColumnQuantum)
    if (column < t.columns) short_chains<S, kChain, MR, 1>(t, column);
}

// Walks the cell in strips of kStripVectors vectors; the last strip may be narrower.
template <class S, int MR>
void cell_rows(const CellArgs& t) {
  if (t.chain <= S::kShortChain) switch (t.chain) {
      case 1:
        return short_chain_rows<S, 1, MR>(t);
      case 2:
        return short_chain_rows<S, 2, MR>(t);
      case 4:
        return short_chain_rows<S, 4, MR>(t);
      default:
        return short_chain_rows<S, 0, MR>(t);
    }
  constexpr int kLong = S::kStripVectors;
  int column = 0;
  constexpr int kStrip = kLong * S::kLanes;
  for (; column + kStrip <= t.columns; column += kStrip) long_chains<S, MR, kLong>(t, column);
  if constexpr (kStrip > kColumnQuantum) {
    static_assert(kStrip == 4 * kColumnQuantum);
    switch ((t.columns - column) / kColumnQuantum) {
      case 1:
        return long_chains<S, MR, 1>(t, column);
      case 2:
        return long_chains<S, MR, 2>(t, column);
      case 3:
        return long_chains<S, MR, 3>(t, column);
    }
  }
}

// Panels of up to four columns. Each vector holds four words of k for each column, so no lane is
// wasted on missing columns. The four sums of a column are added when a chain ends. Of the results,
// the first vector holds rows 0 to 3 for every column, the second 4, 5, 4, 5.
template <class S>
inline __attribute__((always_inline)) void add_narrow_chain(const CellArgs& t, int start, int end,
                                                            typename S::I (&sums)[2]) {
  using I = typename S::I;
  static_assert(S::kLanes == 4 * kMostNarrow && kTileRows == 6);
  I sum[kTileRows];
#pragma GCC unroll 6
  for (int i = 0; i < kTileRows; ++i) sum[i] = S::zero();
  for (int k = start; k < end; k += 4) {
    const I b = S::load(t.b_quads + k * kMostNarrow);
#pragma GCC unroll 6
    for (int i = 0; i < kTileRows; ++i) S::dot(sum[i], S::broadcast_quad(t.a + i * t.a_row + k), b);
  }
  I pairs[3];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) pairs[i] = S::add_neighbours(sum[2 * i], sum[2 * i + 1]);
  sums[0] = S::add_neighbours(pairs[0], pairs[1]);
  sums[1] = S::add_neighbours(pairs[2], pairs[2]);
}

template <class S>
void store_narrow(const CellArgs& t, const float* last, const typename S::F (&total)[2]) {
  alignas(64) float sums[2][S::kLanes];
  for (int h = 0; h < 2; ++h) S::store_float(sums[h], total[h]);
  for (int i = 0; i < kTileRows; ++i)
    for (int j = 0; j < t.narrow; ++j) {
      const float sum = t.in[i][j] + sums[i / 4][4 * j + i % 4];
      t.out[i][j] = last != nullptr ? sum * last[i] : sum;
    }
}

template <class S>
__attribute__((noinline)) void narrow_cell(const CellArgs& t) {
  typename S::F total[2] = {S::broadcast_float(0), S::broadcast_float(0)};
  for (int start = 0; start < t.pairs; start += t.chain) {
    typename S::I sums[2];
    add_narrow_chain<S>(t, start, start + t.chain < t.pairs ? start + t.chain : t.pairs, sums);
    for (int h = 0; h < 2; ++h) total[h] = S::add_float(total[h], S::to_float(sums[h]));
  }
  store_narrow<S>(t, t.final_scales, total);
}

// For chains that may overflow. Sums have 64 bits and are saturated to int32 when a chain ends. Few
// cells need this, so the loops are plain; the compiler vectorizes them.
__attribute__((noinline)) void saturating_cell(const CellArgs& t) {
  constexpr int64_t kLeast = INT32_MIN, kMost = INT32_MAX;
  for (int i = 0; i < t.rows; ++i) {
    const int32_t* a = t.a + i * t.a_row;
    const int32_t* b = t.b;
    float total[kPanelColumns] = {};
    for (int start = 0; start < t.pairs; start += t.chain) {
      const int end = start + t.chain < t.pairs ? start + t.chain : t.pairs;
      int64_t sum[kPanelColumns] = {};
      for (int k = start; k < end; ++k, a += t.a_pair, b += t.columns) {
        const int32_t low = static_cast<int16_t>(*a), high = *a >> 16;
        for (int j = 0; j < t.columns; ++j)
          sum[j] += int64_t{low * static_cast<int16_t>(b[j])} + int64_t{high * (b[j] >> 16)};
      }
      int64_t saturated = 0;
      for (int j = 0; j < t.columns; ++j) {
        saturated += sum[j] < kLeast || sum[j] > kMost;
        const int64_t above = sum[j] < kLeast ? kLeast : sum[j];
        total[j] += static_cast<float>(static_cast<int32_t>(above > kMost ? kMost : above));
      }
      *t.saturated += saturated;
    }
    for (int j = 0; j < t.columns; ++j) {
      const float sum = t.in[i][j] + total[j];
      t.out[i][j] = t.final_scales != nullptr ? sum * t.final_scales[i] : sum;
    }
  }
}

template <class S>
void cell(const CellArgs& t) {
  if (t.saturated != nullptr) return saturating_cell(t);
  if constexpr (S::kNarrow)
    if (t.b_quads != nullptr && t.rows == kTileRows && t.chain % 4 == 0) return narrow_cell<S>(t);
  switch (t.rows) {
    case 1:
      return cell_rows<S, 1>(t);
    case 2:
      return cell_rows<S, 2>(t);
    case 3:
      return cell_rows<S, 3>(t);
    case 4:
      return cell_rows<S, 4>(t);
    case 5:
      return cell_rows<S, 5>(t);
    default:
      return cell_rows<S, 6>(t);
  }
}
