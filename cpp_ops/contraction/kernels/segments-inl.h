// The microkernel for operands in blocks: chains and exponents belong to segments of k. Included as
// isa/common-inl.h describes.

// Adds the sums of a chain to float32 sums, in the units of these (`kStepwise`) or with a scale for
// each row.
template <class S, int MR, int NV, bool kStepwise>
inline __attribute__((always_inline)) void add_sums(const typename S::I (&sum)[MR][NV],
                                                    const float* scale,
                                                    typename S::F (&total)[MR][NV]) {
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) {
    const auto of_row = S::scale_at(scale + i);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      if constexpr (kStepwise)
        total[i][j] = S::add_float(total[i][j], S::to_float(sum[i][j]));
      else
        total[i][j] = S::add_scaled(total[i][j], sum[i][j], of_row);
  }
}

// With so few rows a chain's products depend on each other for most of its time, so the next chain
// has to begin meanwhile. Loops of a length that the processor cannot predict would prevent it.
inline constexpr int kMostFewRows = 4;
inline constexpr int kLineWords = 16;

template <class S, int MR, int NV, bool kStepwise, int kChain>
inline __attribute__((always_inline)) void add_chains_of(const CellArgs& t, const int32_t* a,
                                                         const int32_t* b, const float* scale,
                                                         typename S::F (&total)[MR][NV]) {
  for (int words = 0; words < kSegment / 2; words += kChain) {
    typename S::I sum[MR][NV];
#pragma GCC unroll 16
    for (int k = 0; k < kChain; ++k) {
      typename S::I bk[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) bk[j] = S::load(b + j * S::kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < NV * S::kLanes; j += kLineWords)
        __builtin_prefetch(b + t.fetch_ahead + j);
#pragma GCC unroll 4
      for (int i = 0; i < MR; ++i) {
        const typename S::I ak = S::broadcast(a + i * t.a_row);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j)
          if (k == 0)
            sum[i][j] = S::pair_dot(ak, bk[j]);
          else
            S::dot(sum[i][j], ak, bk[j]);
      }
      a += t.a_pair;
      b += t.columns;
    }
    add_sums<S, MR, NV, kStepwise>(sum, scale, total);
  }
}

// A segment of kSegment / 2 words.
template <class S, int MR, int NV, bool kStepwise>
inline __attribute__((always_inline)) void add_whole_segment(const CellArgs& t, int chain,
                                                             const int32_t** a, const int32_t** b,
                                                             const float* scale,
                                                             typename S::F (&total)[MR][NV]) {
  switch (chain) {
    case 16:
      add_chains_of<S, MR, NV, kStepwise, 16>(t, *a, *b, scale, total);
      break;
    case 8:
      add_chains_of<S, MR, NV, kStepwise, 8>(t, *a, *b, scale, total);
      break;
    case 4:
      add_chains_of<S, MR, NV, kStepwise, 4>(t, *a, *b, scale, total);
      break;
    case 2:
      add_chains_of<S, MR, NV, kStepwise, 2>(t, *a, *b, scale, total);
      break;
    default:
      add_chains_of<S, MR, NV, kStepwise, 1>(t, *a, *b, scale, total);
  }
  *a += kSegment / 2 * t.a_pair;
  *b += kSegment / 2 * int64_t{t.columns};
}

// The float32 sums stay in registers.
template <class S, int MR, int NV, bool kStepwise>
__attribute__((noinline)) void segments_in_registers(const CellArgs& t, const int32_t* chains,
                                                     const Scales& scales, const float* last,
                                                     int column) {
  const int32_t* a = t.a;
  const int32_t* b = t.b + column;
  typename S::F total[MR][NV];
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) total[i][j] = S::broadcast_float(0);
  const float* scale = (kStepwise ? scales.steps : scales.of) + t.first_row;
  for (int left = t.pairs; left > 0; left -= kSegment / 2) {
    if constexpr (kStepwise) {
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) total[i][j] = S::scaled(total[i][j], scale + i);
    }
    const int chain = *chains++;
    if (MR <= kMostFewRows && left >= kSegment / 2) {
      add_whole_segment<S, MR, NV, kStepwise>(t, chain, &a, &b, scale, total);
      scale += kSegmentRows;
      continue;
    }
    for (int words = left < kSegment / 2 ? left : kSegment / 2; words > 0;) {
      typename S::I sum[MR][NV];
      take_chain<S>(t, chain, &words, &a, &b, sum);
      add_sums<S, MR, NV, kStepwise>(sum, scale, total);
    }
    scale += kSegmentRows;
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      if constexpr (kStepwise) total[i][j] = S::scaled(total[i][j], scales.units + t.first_row + i);
      store_output<S>(t, last, i, column + j * S::kLanes, total[i][j]);
    }
}

// With few registers, the float32 sums are in memory.
template <class S, int MR, int NV>
__attribute__((noinline)) void segments_in_memory(const CellArgs& t, const int32_t* chains,
                                                  const Scales& scales, const float* last,
                                                  int column) {
  const int32_t* a = t.a;
  const int32_t* b = t.b + column;
  float* const totals = t.memory + column;
  const float* scale = scales.of + t.first_row;
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j)
      S::store_float(totals + i * kPanelColumns + j * S::kLanes, S::broadcast_float(0));
  for (int left = t.pairs; left > 0; left -= kSegment / 2, scale += kSegmentRows, ++chains) {
    for (int words = left < kSegment / 2 ? left : kSegment / 2; words > 0;) {
      typename S::I sum[MR][NV];
      take_chain<S>(t, *chains, &words, &a, &b, sum);
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i) {
        const auto of_row = S::scale_at(scale + i);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          float* const total = totals + i * kPanelColumns + j * S::kLanes;
          S::store_float(total, S::add_scaled(S::load_float(total), sum[i][j], of_row));
        }
      }
    }
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j)
      store_output<S>(t, last, i, column + j * S::kLanes,
                      S::load_float(totals + i * kPanelColumns + j * S::kLanes));
}

// Columns [column, end) of a panel.
template <class S, int MR>
void panel_rows(const CellArgs& t, const int32_t* chains, bool short_chains, const Scales& scales,
                const float* last, int column, int end) {
  constexpr int kLong = S::kStripVectors, kShort = kLong / 2;
  if constexpr (kLong * S::kLanes <= kColumnQuantum) {
    // The registers have room for few float32 sums.
    if (!short_chains) {
      for (; column < end; column += kLong * S::kLanes)
        segments_in_memory<S, MR, kLong>(t, chains, scales, last, column);
      return;
    }
  }
  constexpr int kStrip = kShort * S::kLanes;
  const auto run = [&](auto vectors) {
    if constexpr (S::kScalesTotals)
      if (scales.stepwise)
        return segments_in_registers<S, MR, vectors.value, true>(t, chains, scales, last, column);
    segments_in_registers<S, MR, vectors.value, false>(t, chains, scales, last, column);
  };
  for (; column + kStrip <= end; column += kStrip) run(Constant<kShort>{});
  if constexpr (kStrip > kColumnQuantum)
    if (column < end) run(Constant<1>{});
}

// Runs 5 or 6 rows as 3 and the rest. The registers then have room for whole segments.
template <class S>
void rows_by_three(const CellArgs& t, const int32_t* chains, bool short_chains,
                   const Scales& scales, const float* last, int column, int end) {
  panel_rows<S, 3>(t, chains, short_chains, scales, last, column, end);
  CellArgs rest = t;
  rest.first_row = 3;
  rest.fetch_ahead = 0;
  rest.a += 3 * t.a_row;
  rest.in += 3;
  rest.out += 3;
  const float* const last_of_rest = last == nullptr ? nullptr : last + 3;
  if (t.rows == kTileRows)
    panel_rows<S, 3>(rest, chains, short_chains, scales, last_of_rest, column, end);
  else
    panel_rows<S, 2>(rest, chains, short_chains, scales, last_of_rest, column, end);
}

// See add_narrow_chain.
template <class S>
__attribute__((noinline)) void narrow_segments(const CellArgs& t, const int32_t* chains,
                                               const Scales& scales, const float* last) {
  typename S::F total[2] = {S::broadcast_float(0), S::broadcast_float(0)};
  const float* scale = scales.of;
  for (int start = 0; start < t.pairs; start += kSegment / 2, scale += kSegmentRows, ++chains) {
    const int end = start + kSegment / 2 < t.pairs ? start + kSegment / 2 : t.pairs;
    for (int at = start; at < end; at += *chains) {
      typename S::I sums[2];
      add_narrow_chain<S>(t, at, at + *chains < end ? at + *chains : end, sums);
      for (int h = 0; h < 2; ++h)
        total[h] = S::add_scaled(total[h], sums[h], S::broadcast_quad_float(scale + 4 * h));
    }
  }
  store_narrow<S>(t, last, total);
}

// See saturating_cell.
template <class S>
__attribute__((noinline)) void saturating_segments(const CellArgs& t, const int32_t* chains,
                                                   const Scales& scales, const float* last,
                                                   int column, int end) {
  for (int i = 0; i < t.rows; ++i) {
    const int32_t* a = t.a + i * t.a_row;
    const int32_t* b = t.b + column;
    alignas(64) float total[kBlocksPanelColumns] = {};
    for (int start = 0; start < t.pairs;) {
      const int segment = start / (kSegment / 2), in_segment = start % (kSegment / 2);
      int stop = start - in_segment % chains[segment] + chains[segment];
      if (stop > t.pairs) stop = t.pairs;
      int64_t exact[kBlocksPanelColumns] = {};
      for (; start < stop; ++start, a += t.a_pair, b += t.columns) {
        const int32_t low = static_cast<int16_t>(*a), high = *a >> 16;
        for (int j = 0; j < end - column; ++j)
          exact[j] += int64_t{low * static_cast<int16_t>(b[j])} + int64_t{high * (b[j] >> 16)};
      }
      alignas(64) int32_t sum[kBlocksPanelColumns] = {};
      for (int j = 0; j < end - column; ++j) {
        const int64_t above = exact[j] < INT32_MIN ? INT32_MIN : exact[j];
        sum[j] = static_cast<int32_t>(above > INT32_MAX ? INT32_MAX : above);
        *t.saturated += sum[j] != exact[j];
      }
      const auto of_row = S::scale_at(scales.of + segment * kSegmentRows + i);
      for (int j = 0; j < kBlocksPanelColumns; j += S::kLanes)
        S::store_float(total + j,
                       S::add_scaled(S::load_float(total + j), S::load(sum + j), of_row));
    }
    for (int j = column; j < end; ++j) {
      const float sum = t.in[i][j] + total[j - column];
      t.out[i][j] = last != nullptr ? sum * last[i] : sum;
    }
  }
}

template <class S>
bool cell_in_blocks(const CellArgs& t, const BlockCellArgs& blocks) {
  const int panels = t.columns > kBlocksPanelColumns ? 2 : 1;
  static_assert(kHalves == 2);
  Scales scales[kHalves];
  bool normal = true;
  const bool stepwise = S::kScalesTotals && t.saturated == nullptr && t.b_quads == nullptr;
  for (int p = 0; p < panels; ++p)
    normal &= t.pairs > kSegment ? set_scales<S, kSegments>(blocks, p, t.rows, stepwise, &scales[p])
                                 : set_scales<S, 2>(blocks, p, t.rows, stepwise, &scales[p]);
  // With short chains, sums in memory take longer.
  int few = 0;
  if constexpr (S::kLanes == 8)
    for (int p = 0; p < panels; ++p)
      for (int s = 0; s < kSegments; ++s) few += blocks.chains->words[p][s] <= 4 ? 1 : 0;
  const bool short_chains = few * 2 > panels * kSegments;
  for (int p = 0; p < panels; ++p) {
    const int column = p * kBlocksPanelColumns;
    const int end = p + 1 < panels ? column + kBlocksPanelColumns : t.columns;
    const int32_t* const chains = blocks.chains->words[p];
    const float* const last = blocks.finish && normal ? scales[p].last : nullptr;
    if (t.saturated != nullptr) {
      saturating_segments<S>(t, chains, scales[p], last, column, end);
      continue;
    }
    if constexpr (S::kNarrow)
      if (t.b_quads != nullptr && t.rows == kTileRows && blocks.chains->shortest % 4 == 0) {
        narrow_segments<S>(t, chains, scales[p], last);
        continue;
      }
    if (t.few_rows && t.rows > kMostFewRows) {
      rows_by_three<S>(t, chains, short_chains, scales[p], last, column, end);
      continue;
    }
    const auto run = [&](auto rows) {
      panel_rows<S, rows.value>(t, chains, short_chains, scales[p], last, column, end);
    };
    switch (t.rows) {
      case 1:
        run(Constant<1>{});
        break;
      case 2:
        run(Constant<2>{});
        break;
      case 3:
        run(Constant<3>{});
        break;
      case 4:
        run(Constant<4>{});
        break;
      case 5:
        run(Constant<5>{});
        break;
      default:
        run(Constant<6>{});
    }
  }
  return normal || !blocks.finish;
}
