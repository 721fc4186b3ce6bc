#include "contraction/packing.h"

#include <algorithm>

namespace dfpjax {

Bounds make_bounds(const std::vector<Window>& windows) {
  Bounds bounds{};
  for (const Window& w : windows) bounds.size[bounds.count++] = static_cast<int32_t>(w.size);
  return bounds;
}

Point make_origin(const std::vector<Window>& windows) {
  Point origin{};
  for (size_t w = 0; w < windows.size(); ++w) {
    origin.coord[w] = static_cast<int32_t>(windows[w].offset);
    origin.offset += windows[w].offset * windows[w].stride_a;
  }
  return origin;
}

const int32_t* word_quads(const int32_t* words, int stride, int count, int pairs, int32_t* out) {
  std::fill(out, out + kMostNarrow * kBlock / 2, 0);
  for (int k = 0; k < pairs; ++k)
    for (int column = 0; column < count; ++column)
      out[k / 4 * 4 * kMostNarrow + column * 4 + k % 4] = words[k * stride + column];
  return out;
}

PackingSpace::PackingSpace(int64_t max_rows, int64_t max_blocks) {
  const int64_t longest = std::max<int64_t>({max_rows, kBlock, kPanelsPerPack * kPanelColumns});
  points.reset(new Point[static_cast<size_t>(longest)]);
  runs.reset(new Run[static_cast<size_t>(std::max(longest, max_blocks * kBlock))]);
  run_counts.resize(static_cast<size_t>(max_blocks));
  zeros.resize(static_cast<size_t>(longest));
  edge.reset(new int16_t[static_cast<size_t>(2 * longest + kSlack)]);
  rows.reset(new int16_t[kPanelColumns * kBlock + kSlack]);
}

void PackingSpace::make_room(int64_t cuts, int64_t count) {
  const auto grow = [](auto* vector, int64_t size) {
    if (vector->size() < static_cast<size_t>(size)) vector->resize(static_cast<size_t>(size));
  };
  grow(&cut_runs, cuts);
  grow(&exponents, count + Exponents::kLookUpSlack);
  grow(&shifts, count);
}

int64_t PackingSpace::make_common(int64_t rows) {
  const int64_t stride = rows + kSegmentRows;  // a tile reads beyond the last row
  common.assign(static_cast<size_t>(kSegments * stride), kAbsent);
  return stride;
}

int PackingSpace::look_up(const Exponents& of, int64_t origin, const Bounds& bounds, int count,
                          int64_t stride, const Run* from, int from_count, int64_t piece,
                          bool each_alone, int64_t first) {
  int64_t elements = 0;
  for (int i = 0; i < from_count; ++i) elements += from[i].length;
  make_room(first + elements, 0);
  Run* const cut = cut_runs.data() + first;
  using Cut = Exponents::Cut;
  for (const Cut how : {Cut::kRuns, Cut::kUnits, Cut::kElements}) {
    const int cuts = of.cut_runs(origin, from, from_count, piece, how, cut);
    make_room(0, (first + cuts) * stride);
    if (of.look_up(bounds, points.get(), count, cut, cuts, how, each_alone, stride, &points_space,
                   exponents.data() + first * stride))
      return cuts;
  }
  return 0;  // not reached: look_up() agrees to single elements
}

void Preview::set(const int16_t* base, const Axis& points, int64_t p0, int64_t p1, const Axis& runs,
                  int64_t r0, int64_t r1) {
  base_ = base;
  offsets_.resize(static_cast<size_t>(p1 - p0));
  points.offsets(p0, p1, 0, offsets_.data());
  runs_.resize(static_cast<size_t>(runs.max_runs(r1 - r0)));
  run_count_ = runs.runs(r0, r1, runs_.data());
  next_ = 0;
  end_ = p1 - p0;
}

void Preview::set(const int32_t* words, int64_t count) {
  constexpr int kStretch = 256;  // elements
  base_ = reinterpret_cast<const int16_t*>(words);
  next_ = 0;
  end_ = ceil_div(2 * count, kStretch);
  offsets_.resize(static_cast<size_t>(end_));
  for (int64_t i = 0; i < end_; ++i) offsets_[static_cast<size_t>(i)] = i * kStretch;
  runs_.resize(1);
  runs_[0] = Run{};
  runs_[0].length = kStretch;
  run_count_ = 1;
}

void Preview::step() {
  constexpr int kLine = 64 / sizeof(int16_t);
  const int64_t end = std::min(next_ + per_step_, end_);
  for (; next_ < end; ++next_) {
    const int16_t* point = base_ + offsets_[static_cast<size_t>(next_)];
    for (int r = 0; r < run_count_; ++r) {
      const Run& run = runs_[static_cast<size_t>(r)];
      for (int32_t i = 0; i < run.length + kLine - 1; i += kLine)
        __builtin_prefetch(point + run.offset + i, 0, 2);
    }
  }
}

}  // namespace dfpjax
