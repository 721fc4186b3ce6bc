// The chains of a cell of operands in blocks, and what their sums are multiplied by. Included as
// isa/common-inl.h describes.

void finish_tile(const int32_t* from, int64_t stride, int segments, int rows, TileSegments* tile) {
  const Eight exists = Eight{0, 1, 2, 3, 4, 5, 4, 5} < rows;
  Eight before = eight(kAbsent), least = eight(0), most = least;
  for (int s = 0; s < kSegments; ++s) {
    Eight own = eight(kAbsent);
    if (s < segments) {
      // The kernel for narrow panels reads rows 4 and 5 twice.
      const auto found = load_as<Eight>(from + s * stride);
      const Eight repeated = __builtin_shufflevector(found, found, 0, 1, 2, 3, 4, 5, 4, 5);
      own = exists ? repeated : own;
    }
    store_as(tile->exponents[s], own);
    const Eight first = before == kAbsent;
    const Eight next = own == kAbsent ? before : own;
    const Eight step = first ? eight(0) : before - next;
    store_as(tile->steps[s], __builtin_convertvector(step, EightFloats));
    least = (first | (next < least)) ? next : least;
    most = (first | (next > most)) ? next : most;
    before = next;
  }
  store_as(tile->units, before == kAbsent ? eight(0) : before);
  int32_t ranges[kSegmentRows];
  store_as(ranges, most - least);
  tile->range = 0;
  for (int32_t range : ranges) tile->range = larger(tile->range, range);
}

void finish_panel(PanelSegments* panel) {
  int32_t before = kAbsent, least = 0, most = 0;
  for (int s = 0; s < kSegments; ++s) {
    const int32_t own = panel->exponents[s], next = own == kAbsent ? before : own;
    const bool first = before == kAbsent;
    panel->steps[s] = static_cast<float>(first ? 0 : before - next);
    least = first ? next : smaller(least, next);
    most = first ? next : larger(most, next);
    before = next;
  }
  panel->unit = before == kAbsent ? 0 : before;
  panel->range = most - least;
}

void certify(const SegmentNorms& a, const PanelSegments* b, int panels, SegmentChains* chains) {
  Eight short_of_8{}, short_of_4{};
  for (int p = 0; p < panels; ++p) {
    Eight words = eight(1), safe{};
#pragma GCC unroll 4
    for (int level = kSegmentNorms - 1; level >= 0; --level) {
      const auto product =
          load_as<EightFloats>(a.chunk[level]) * load_as<EightFloats>(b[p].norms.chunk[level]);
      safe = product < kCertifiedBelow;
      words = safe ? eight(kSegment / 2 >> level) : words;
      if (level == kSegmentNorms - 1) short_of_4 |= ~safe;
      if (level == kSegmentNorms - 2) short_of_8 |= ~safe;
    }
    store_as(chains->words[p], words);
  }
  chains->shortest = any(short_of_4) ? 1 : any(short_of_8) ? 2 : 4;
}

constexpr int32_t kNoScale = -1000;  // an exponent that gives zero

// For each segment and row, the exponent of what sums are multiplied by, as the functions of S take
// it.
struct Scales {
  alignas(64) float of[kSegments * kSegmentRows];
  // If the exponents of a row are close to each other, sums may be in the units of each segment in
  // turn (`stepwise`). `steps` are the differences of these, and `units` those of the last.
  bool stepwise;
  alignas(64) float steps[kSegments * kSegmentRows];
  alignas(64) float units[kSegmentRows];
  alignas(64) float last[kSegmentRows];  // what the results are multiplied by
};

// Raises the running sums of a panel to a higher base.
__attribute__((noinline)) void raise_base(const BlockCellArgs& t, int panel, int rows,
                                          const int32_t* base, const int32_t* raised) {
  for (int i = 0; i < rows; ++i) {
    if (raised[i] == base[i] || base[i] == kUnset) continue;
    const int32_t below = raised[i] - base[i];
    const int32_t bits = below > kMostBelow ? 0 : (127 - below) << 23;
    float kept;
    __builtin_memcpy(&kept, &bits, sizeof kept);
    float* const sums = t.running + i * kPanelColumns + panel * kBlocksPanelColumns;
    for (int j = 0; j < kBlocksPanelColumns; ++j) sums[j] *= kept;
  }
}

// Scales for exponents that are far from each other.
__attribute__((noinline)) void set_far_scales(const TileSegments& a, const PanelSegments& b,
                                              Eight base, Eight* above) {
  for (int s = 0; s < kSegments; ++s) {
    const Eight sum = load_as<Eight>(a.exponents[s]) + b.exponents[s];
    above[s] = sum - base;
    above[s] = ((sum < kAbsent / 2) | (above[s] < -kMostBelow)) ? eight(kNoScale) : above[s];
  }
}

// Sets the scales of kCount segments, or of fewer. Returns whether results can be finished.
// `stepwise` says whether sums may be so.
template <class S, int kCount>
inline bool set_scales(const BlockCellArgs& t, int panel, int rows, bool stepwise, Scales* out) {
  int32_t* const bases = t.bases[panel];
  const TileSegments& a = *t.a;
  const PanelSegments& b = t.b[panel];
  const Eight base = t.running == nullptr ? eight(kUnset) : load_as<Eight>(bases);
  Eight top = eight(2 * kAbsent);
#pragma GCC unroll 8
  for (int s = 0; s < kCount; ++s)
    top = larger(top, load_as<Eight>(a.exponents[s]) + b.exponents[s]);
  const Eight present = top > kAbsent / 2;
  const Eight raises = present & (top > base + kMostAbove);
  const Eight raised = raises ? top : base;
  if (any(raises & (base != kUnset))) {
    int32_t to[kSegmentRows];
    store_as(to, raised);
    raise_base(t, panel, rows, bases, to);
  }
  store_as(bases, raised);
  // Exponents are then less than kMostAbove from each other, and none is kMostBelow below the base.
  out->stepwise = stepwise && a.range + b.range <= kMostAbove &&
                  !any(present & (raised - top > kMostBelow - kMostAbove));
  if (out->stepwise) {
#pragma GCC unroll 8
    for (int s = 0; s < kCount; ++s)
      store_as(out->steps + s * kSegmentRows, load_as<EightFloats>(a.steps[s]) + b.steps[s]);
    store_as(out->units, S::scales(load_as<Eight>(a.units) + b.unit - raised));
  } else {
    Eight above[kSegments];
    set_far_scales(a, b, raised, above);
    for (int s = 0; s < kSegments; ++s) store_as(out->of + s * kSegmentRows, S::scales(above[s]));
  }
  if (!t.finish) return true;
  const Eight exponent = raised == kUnset ? eight(0) : raised;
  store_as(out->last, (exponent + 127) << 23);
  return !any((exponent < -126) | (exponent > 127));
}
