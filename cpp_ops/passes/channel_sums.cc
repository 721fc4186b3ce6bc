#include "passes/channel_sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "passes/channel_blocks.h"

namespace dfpjax {
namespace {

void combine(const ChannelBlocks& blocks, int64_t group, double* partial, float* out) {
  const int64_t channels = blocks.shape.channels;
  const double* const sums = join(blocks, group, partial, std::plus<double>());
  for (int64_t c = 0; c < channels; ++c) out[group * channels + c] = static_cast<float>(sums[c]);
}

// The blocks' extremes ignore NaNs, but a channel with a NaN has a NaN as its sum of squares.
void combine_extremes(const ChannelBlocks& blocks, int64_t group, float* low, float* high,
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

}  // namespace

void moments(const ChannelShape& shape, const float* x, const Moments& out,
             const PassKernels& kernels, Executor& executor) {
  const ChannelBlocks blocks(shape);
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
  run_then_combine(executor, loop, shape.groups, [&](int64_t group) {
    combine(blocks, group, sums.all(), out.sums);
    combine(blocks, group, squares.all(), out.squares);
    combine_extremes(blocks, group, low.all(), high.all(), out);
  });
}

void paired_sums(const ChannelShape& shape, const Paired& in, float* sums, float* products,
                 const PassKernels& kernels, Executor& executor) {
  const ChannelBlocks blocks(shape);
  const Partial<double> partial_sums(blocks), partial_products(blocks);
  const bool rectified = in.scale != nullptr;
  const Loop loop{blocks.count(), 1, [&](int, int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit) {
                      const int64_t start = blocks.first_row(unit) * shape.channels;
                      const int64_t group = unit / blocks.per_group * shape.channels;
                      const PairedRows rows{in.g + start,
                                            in.x + start,
                                            in.centre + group,
                                            rectified ? in.scale + group : nullptr,
                                            rectified ? in.shift + group : nullptr,
                                            partial_sums.of(unit, 0),
                                            partial_products.of(unit, 0)};
                      kernels.paired_sums(rows, blocks.row_count(unit), shape.channels);
                    }
                  }};
  run_then_combine(executor, loop, shape.groups, [&](int64_t group) {
    combine(blocks, group, partial_sums.all(), sums);
    combine(blocks, group, partial_products.all(), products);
  });
}

void masked_sums(const ChannelShape& shape, const float* x, const bool* positive, float* sums,
                 const PassKernels& kernels, Executor& executor) {
  const ChannelBlocks blocks(shape);
  const Partial<double> partial(blocks);
  const Loop loop{
      blocks.count(), 1, [&](int, int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t start = blocks.first_row(unit) * shape.channels;
          const MaskedRows rows{x + start, positive + start, nullptr, shape.channels, 0};
          kernels.masked_sums(rows, blocks.row_count(unit), shape.channels, partial.of(unit, 0));
        }
      }};
  run_then_combine(executor, loop, shape.groups,
                   [&](int64_t group) { combine(blocks, group, partial.all(), sums); });
}

void rectified_sum(const ChannelShape& shape, const Rectified& in, const RectifiedSum& out,
                   const PassKernels& kernels, Executor& executor) {
  const ChannelBlocks blocks(shape);
  const Partial<float> low(blocks);
  const Partial<int32_t> high(blocks);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Loop loop{blocks.count(), 1, [&](int, int64_t begin, int64_t end) {
                    for (int64_t unit = begin; unit < end; ++unit) {
                      const int64_t start = blocks.first_row(unit) * shape.channels;
                      const int64_t group = unit / blocks.per_group * shape.channels;
                      const RectifiedRows rows{in.x + start,
                                               in.residual + start,
                                               in.mean + group,
                                               in.scale + group,
                                               in.shift + group,
                                               out.y + start,
                                               out.positive ? out.positive + start : nullptr,
                                               low.of(unit, kInfinity),
                                               high.of(unit, 0),
                                               shape.channels,
                                               shape.channels};
                      kernels.rectified_sum(rows, blocks.row_count(unit), shape.channels);
                    }
                  }};
  run_then_combine(executor, loop, shape.groups, [&](int64_t group) {
    const float* const lows =
        join(blocks, group, low.all(), [](float a, float b) { return std::min(a, b); });
    const int32_t* const highs =
        join(blocks, group, high.all(), [](int32_t a, int32_t b) { return std::max(a, b); });
    const int64_t first = group * shape.channels;
    store_extremes(shape.channels, lows, highs, out.low + first, out.high + first);
  });
}

void store_extremes(int64_t channels, const float* least, const int32_t* greatest_bits, float* low,
                    float* high) {
  for (int64_t c = 0; c < channels; ++c) {
    std::memcpy(high + c, greatest_bits + c, sizeof(float));
    low[c] = std::isnan(high[c]) ? high[c] : least[c];
  }
}

}  // namespace dfpjax
