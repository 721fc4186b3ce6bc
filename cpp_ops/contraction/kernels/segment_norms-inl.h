// Norms that certify chains within segments. Included as isa/common-inl.h describes.

// As round_up_norms.
inline void set_segment_norms(const int32_t* most, SegmentNorms* out) {
  for (int level = 0; level < kSegmentNorms; ++level)
    for (int s = 0; s < kSegments; ++s)
      out->chunk[level][s] =
          static_cast<float>(most[level * kSegments + s] + (kSegment / 2 >> level));
}

template <class S>
void segment_norms_rows(const int16_t* rows, int64_t stride, int count, int k, SegmentNorms* out) {
  using I = typename S::I;
  constexpr int kPerSegment = kSegment / 2 / S::kLanes;
  typename S::SegmentMaxima most{};
  for (int r = 0; r < count; ++r, rows += stride) {
    I squares[S::kSquares];
#pragma GCC unroll 16
    for (int i = 0; i < S::kSquares; ++i)
      squares[i] = i / kPerSegment * kSegment < k ? S::squares(S::load(rows + i * 2 * S::kLanes))
                                                  : S::zero();
    S::raise_segments(squares, &most);
  }
  int32_t norms[kSegmentNorms * kSegments];
  S::store_segments(most, norms);
  set_segment_norms(norms, out);
}

// For one vector of rows (or columns): the largest norms of each segment.
template <class S>
void segment_norms_lanes(const int32_t* words, int64_t stride, int pairs, typename S::I* out) {
  using I = typename S::I;
  constexpr int kWords = kSegment / 2;
  for (int s = 0; s < kSegments; ++s, words += kWords * stride) {
    const int count = pairs - s * kWords;
    I most[kNorms];
#pragma GCC unroll 8
    for (int c = 0; c < kNorms; ++c) most[c] = S::zero();
    if (count >= kWords) {
      squares<S, kSegmentNorms>(words, stride, most);
    } else {
      // A partial sum never exceeds the whole sum, so maxima may be taken early.
      I part[kSegmentNorms + 1];
      for (I& p : part) p = S::zero();
      for (int k = 0; k < count; ++k) {
        const I square = squares<S, 0>(words + k * stride, stride, most);
        for (int level = 1; level <= kSegmentNorms; ++level) {
          part[level] = k % (1 << level) == 0 ? square : S::add(part[level], square);
          most[kNorms - level] = S::max(most[kNorms - level], part[level]);
        }
      }
    }
#pragma GCC unroll 4
    for (int level = 0; level < kSegmentNorms; ++level)
      out[level * kSegments + s] = most[kNorms - kSegmentNorms + level];
  }
}

template <class S>
void segment_norms_pairs(const int32_t* words, int64_t stride, int count, int pairs, int group,
                         SegmentNorms* out, int64_t out_step) {
  using I = typename S::I;
  constexpr int kEntries = kSegmentNorms * kSegments;
  const auto next = [out_step](SegmentNorms* at) {
    return reinterpret_cast<SegmentNorms*>(reinterpret_cast<char*>(at) + out_step);
  };
  I most[kEntries];
  int32_t norms[kEntries];
  if (group % S::kLanes == 0) {
    for (int row = 0; row < count; row += group, out = next(out)) {
      const int end = row + group < count ? row + group : count;
      I all[kEntries];
      for (int i = row; i < end; i += S::kLanes) {
        segment_norms_lanes<S>(words + i, stride, pairs, i == row ? all : most);
        if (i == row) continue;
        for (int e = 0; e < kEntries; ++e) all[e] = S::max(all[e], most[e]);
      }
      for (int e = 0; e < kEntries; ++e) norms[e] = S::reduce_max(all[e]);
      set_segment_norms(norms, out);
    }
    return;
  }
  // By rows, the norms of all segments are neighbours.
  alignas(64) int32_t lanes[kEntries][S::kLanes], by_row[S::kLanes][kEntries];
  int rows = 0;  // that `norms` covers
  for (int row = 0; row < count; row += S::kLanes) {
    segment_norms_lanes<S>(words + row, stride, pairs, most);
    for (int e = 0; e < kEntries; ++e) S::store(lanes[e], most[e]);
    for (int e = 0; e < kEntries; e += S::kLanes)
      S::transpose(reinterpret_cast<const int16_t*>(lanes[e]), 2 * S::kLanes, &by_row[0][e],
                   kEntries);
    for (int i = 0; i < S::kLanes && row + i < count; ++i) {
      for (int e = 0; e < kEntries; e += S::kLanes) {
        const I own = S::load(&by_row[i][e]);
        S::store(&norms[e], rows == 0 ? own : S::max(own, S::load(&norms[e])));
      }
      if (++rows < group && row + i + 1 < count) continue;
      set_segment_norms(norms, out);
      out = next(out);
      rows = 0;
    }
  }
}
