// Cuts rows of channels into blocks, the units of work of passes with results for each channel. The
// shape alone determines the blocks, so results do not depend on the number of threads.
#ifndef DFPJAX_PASSES_CHANNEL_BLOCKS_H_
#define DFPJAX_PASSES_CHANNEL_BLOCKS_H_

#include <algorithm>
#include <cstdint>

#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace dfpjax {

// A tensor [groups][rows][channels].
struct ChannelShape {
  int64_t groups, rows, channels;
};

// Each block of rows of a group is one unit of work.
struct ChannelBlocks {
  explicit ChannelBlocks(const ChannelShape& shape) : shape(shape) {
    constexpr int64_t kMostBlocks = 64;
    constexpr int64_t kLeastNumbers = int64_t{1} << 14;  // enough to hide the cost of a unit
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

// The results of each block.
template <class T>
class Partial {
 public:
  explicit Partial(const ChannelBlocks& blocks)
      : channels_(blocks.shape.channels), memory_(Scratch::array<T>({blocks.count(), channels_})) {}
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

// Joins the results of a group's blocks into the results of the first block, in ascending order.
template <class T, class Join>
T* join(const ChannelBlocks& blocks, int64_t group, T* partial, Join join_two) {
  const int64_t channels = blocks.shape.channels;
  T* const first = partial + group * blocks.per_group * channels;
  for (int64_t block = 1; block < blocks.per_group; ++block)
    for (int64_t c = 0; c < channels; ++c)
      first[c] = join_two(first[c], first[block * channels + c]);
  return first;
}

// Runs `blocks`, then `work(group)` for all groups. The second step is a stage too, since outside
// of stages subnormal numbers are flushed to zero.
template <class Work>
void run_then_combine(Executor& executor, const Loop& blocks, int64_t groups, Work work) {
  const Loop combination{groups, 1, [&](int, int64_t begin, int64_t end) {
                           for (int64_t group = begin; group < end; ++group) work(group);
                         }};
  run_stages(executor, {{blocks}, {combination}});
}

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_CHANNEL_BLOCKS_H_
