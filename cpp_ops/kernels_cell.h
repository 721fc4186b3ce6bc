// The register-tiled microkernel. See kernels_common.h for how it is included.

// MR x NV vectors of one cell, from vector column 0 of `b` and `column` of the outputs.
template <class S, int MR, int NV>
__attribute__((noinline)) void cell_strip(const CellArgs& t, const int32_t* b, int column) {
  using I = typename S::I;
  using F = typename S::F;
  const int32_t* a = t.a;
  const int64_t a_row = t.a_row, a_pair = t.a_pair, b_pair = t.columns;
  const float* const* in = t.in;
  float* const* out = t.out;
  for (int left = t.pairs; left > 0;) {
    const int chain = left < t.chain ? left : t.chain;
    left -= chain;
    I sum[MR][NV];
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
    if (left > 0 || !t.finish) {
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const int at = column + j * S::kLanes;
          S::store_float(out[i] + at,
                         S::add_float(S::load_float(in[i] + at), S::to_float(sum[i][j])));
        }
    } else {
      const F scale = S::broadcast_float(t.scale);
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const int at = column + j * S::kLanes;
          const F total = S::mul_float(
              S::add_float(S::load_float(in[i] + at), S::to_float(sum[i][j])), scale);
          if (t.stream)
            S::stream_float(out[i] + at, total);
          else
            S::store_float(out[i] + at, total);
        }
    }
    in = out;
  }
}

// Walks the cell in strips of kStripVectors vectors; the last one may be narrower.
template <class S, int MR>
void cell_rows(const CellArgs& t) {
  constexpr int kStrip = S::kStripVectors * S::kLanes;
  int column = 0;
  for (; column + kStrip <= t.columns; column += kStrip)
    cell_strip<S, MR, S::kStripVectors>(t, t.b + column, column);
  if constexpr (kStrip > kColumnQuantum) {
    static_assert(kStrip == 4 * kColumnQuantum);
    switch ((t.columns - column) / kColumnQuantum) {
      case 1: return cell_strip<S, MR, S::kStripVectors / 4>(t, t.b + column, column);
      case 2: return cell_strip<S, MR, S::kStripVectors / 2>(t, t.b + column, column);
      case 3: return cell_strip<S, MR, S::kStripVectors * 3 / 4>(t, t.b + column, column);
    }
  }
}

template <class S>
void cell(const CellArgs& t) {
  switch (t.rows) {
    case 1: return cell_rows<S, 1>(t);
    case 2: return cell_rows<S, 2>(t);
    case 3: return cell_rows<S, 3>(t);
    case 4: return cell_rows<S, 4>(t);
    case 5: return cell_rows<S, 5>(t);
    default: return cell_rows<S, 6>(t);
  }
}
