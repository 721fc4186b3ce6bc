#include "channel_sums.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

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

// What the blocks of a group wrote, joined in the first of them, in their order.
template <class T, class Join>
T* join(const Blocks& blocks, int64_t group, T* partial, Join join_two) {
  const int64_t channels = blocks.shape.channels;
  T* const first = partial + group * blocks.per_group * channels;
  for (int64_t block = 1; block < blocks.per_group; ++block)
    for (int64_t c = 0; c < channels; ++c)
      first[c] = join_two(first[c], first[block * channels + c]);
  return first;
}

void combine(const Blocks& blocks, int64_t group, double* partial, float* out) {
  const int64_t channels = blocks.shape.channels;
  const double* const sums = join(blocks, group, partial, std::plus<double>());
  for (int64_t c = 0; c < channels; ++c) out[group * channels + c] = static_cast<float>(sums[c]);
}

// The blocks' extremes leave NaNs out, but a sum of squares is NaN where there is one.
void combine_extremes(const Blocks& blocks, int64_t group, float* low, float* high,
                      const Moments& out) {
  const int64_t channels = blocks.shape.channels;
  const auto least = [](float a, float b) { return std::min(a, b); };
  const auto most = [](float a, float b) { return std::max(a, b); };
  const float* const lows = join(blocks, group, low, least);
  const float* const highs = join(blocks, group, high, most);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t i = group * channels + c;
    const bool has_nan = std::isnan(out.squares[i]);
    out.low[i] = has_nan ? out.squares[i] : lows[c];
    out.high[i] = has_nan ? out.squares[i] : highs[c];
  }
}

// Runs `blocks`, then `work(group)` for all groups: in a stage too, since subnormal numbers are
// flushed to zero outside of stages.
template <class Work>
bool run_then_combine(Executor& executor, const Loop& blocks, int64_t groups, Work work) {
  const Loop combination{groups, 1, [&](int, int64_t begin, int64_t end) {
                           for (int64_t group = begin; group < end; ++group) work(group);
                         }};
  return run_stages(executor, {{blocks}, {combination}});
}

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
  return run_then_combine(executor, loop, shape.groups, [&](int64_t group) {
    combine(blocks, group, sums.all(), out.sums);
    combine(blocks, group, squares.all(), out.squares);
    combine_extremes(blocks, group, low.all(), high.all(), out);
  });
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
  return run_then_combine(executor, loop, shape.groups, [&](int64_t group) {
    combine(blocks, group, partial_sums.all(), sums);
    combine(blocks, group, partial_products.all(), products);
  });
}

}  // namespace dfpjax
