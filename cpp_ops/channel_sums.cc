#include "channel_sums.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "scratch.h"

namespace dfpjax {
namespace {

constexpr int64_t kMostBlocks = 64;
constexpr int64_t kLeastNumbers = int64_t{1} << 14;  // in a block, lest threads wait for each other

// Rows in blocks of `rows`; a block of a group is one unit of work.
struct Blocks {
  explicit Blocks(const ChannelShape& shape) : shape(shape) {
    const int64_t least = kLeastNumbers / std::max<int64_t>(shape.channels, 1) + 1;
    rows = std::max((shape.rows + kMostBlocks - 1) / kMostBlocks, least);
    per_group = std::max<int64_t>((shape.rows + rows - 1) / rows, 1);
  }
  int64_t count() const { return shape.groups * per_group; }
  int64_t first_row(int64_t unit) const {
    return unit / per_group * shape.rows + unit % per_group * rows;
  }
  int64_t row_count(int64_t unit) const {
    return std::clamp<int64_t>(shape.rows - unit % per_group * rows, 0, rows);
  }

  ChannelShape shape;
  int64_t rows, per_group;
};

// Each group's sums over its blocks, in their order.
void combine(const Blocks& blocks, const double* partial, float* out) {
  const int64_t channels = blocks.shape.channels;
  std::vector<double> total(static_cast<size_t>(channels));
  for (int64_t group = 0; group < blocks.shape.groups; ++group) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t block = 0; block < blocks.per_group; ++block, partial += channels)
      for (int64_t c = 0; c < channels; ++c) total[static_cast<size_t>(c)] += partial[c];
    for (const double sum : total) *out++ = static_cast<float>(sum);
  }
}

void combine_extremes(const Blocks& blocks, const float* low, const float* high,
                      const Moments& out) {
  const int64_t channels = blocks.shape.channels;
  for (int64_t group = 0; group < blocks.shape.groups; ++group)
    for (int64_t c = 0; c < channels; ++c) {
      const float* const lows = low + group * blocks.per_group * channels + c;
      const float* const highs = high + group * blocks.per_group * channels + c;
      float least = lows[0], most = highs[0];
      for (int64_t block = 1; block < blocks.per_group; ++block) {
        least = std::min(least, lows[block * channels]);
        most = std::max(most, highs[block * channels]);
      }
      out.low[group * channels + c] = least;
      out.high[group * channels + c] = most;
    }
}

// What each block writes.
template <class T>
class Partial {
 public:
  explicit Partial(const Blocks& blocks)
      : channels_(blocks.shape.channels),
        memory_(blocks.count() * channels_ * static_cast<int64_t>(sizeof(T))) {}
  T* all() const { return memory_.template as<T>(); }
  T* of(int64_t unit, T start) const {
    T* const first = all() + unit * channels_;
    std::fill(first, first + channels_, start);
    return first;
  }

 private:
  int64_t channels_;
  Scratch memory_;
};

}  // namespace

bool moments(const ChannelShape& shape, const float* x, const Moments& out,
             const KernelTable& kernels, Executor& executor) {
  const Blocks blocks(shape);
  const Partial<double> sums(blocks), squares(blocks);
  const Partial<float> low(blocks), high(blocks);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Loop loop{blocks.count(), 1, [&](int, int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit)
                      kernels.moments(x + blocks.first_row(unit) * shape.channels,
                                      blocks.row_count(unit), shape.channels, sums.of(unit, 0),
                                      squares.of(unit, 0), low.of(unit, kInfinity),
                                      high.of(unit, -kInfinity));
                  }};
  if (!run_stages(executor, {{loop}})) return false;
  combine(blocks, sums.all(), out.sums);
  combine(blocks, squares.all(), out.squares);
  combine_extremes(blocks, low.all(), high.all(), out);
  return true;
}

bool paired_sums(const ChannelShape& shape, const float* g, const float* x, const float* centre,
                 float* sums, float* products, const KernelTable& kernels, Executor& executor) {
  const Blocks blocks(shape);
  const Partial<double> partial_sums(blocks), partial_products(blocks);
  const Loop loop{blocks.count(), 1, [&](int, int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit) {
                      const int64_t start = blocks.first_row(unit) * shape.channels;
                      const int64_t group = unit / blocks.per_group;
                      kernels.paired_sums(g + start, x + start, centre + group * shape.channels,
                                          blocks.row_count(unit), shape.channels,
                                          partial_sums.of(unit, 0), partial_products.of(unit, 0));
                    }
                  }};
  if (!run_stages(executor, {{loop}})) return false;
  combine(blocks, partial_sums.all(), sums);
  combine(blocks, partial_products.all(), products);
  return true;
}

}  // namespace dfpjax
