#include "passes/produced_operand.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "passes/channel_blocks.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

// So many numbers are produced and then quantized, unless one block has more. They stay in the
// second-level cache, beside what they are produced from.
constexpr int64_t kNumbers = 8192;

int64_t most_numbers(const BlockedShape& shape) {
  return std::max(kNumbers, std::min(shape.block_rows, shape.rows) *
                                std::min(shape.block_columns, shape.columns));
}

// Calls work(strip) for strips of whole blocks that have at most most_numbers numbers.
template <class Work>
void for_strips(const BlockedPart& piece, Work work) {
  const int64_t of_block = piece.block_rows * piece.block_columns;
  const int64_t columns =
      std::min(piece.columns, std::max<int64_t>(kNumbers / of_block, 1) * piece.block_columns);
  const int64_t rows =
      std::max<int64_t>(kNumbers / (piece.block_rows * columns), 1) * piece.block_rows;
  for (int64_t r = 0; r < piece.rows; r += rows)
    for (int64_t c = 0; c < piece.columns; c += columns) work(piece.from(r, c, rows, columns));
}

// A number for each column. They are those of the channels, where columns are not several axes.
class OfColumns {
 public:
  OfColumns(const float* of_channels, float absent, const BlockedShape& shape, int64_t channels)
      : numbers_(of_channels) {
    if (of_channels != nullptr && channels == shape.columns) return;
    repeated_.assign(static_cast<size_t>(shape.columns), absent);
    numbers_ = repeated_.data();
    if (of_channels == nullptr) return;
    for (int64_t c = 0; c < shape.columns; c += channels)
      std::copy_n(of_channels, channels, repeated_.data() + c);
  }
  OfColumns(const OfColumns&) = delete;
  OfColumns& operator=(const OfColumns&) = delete;

  const float* numbers() const { return numbers_; }

 private:
  const float* numbers_;
  std::vector<float> repeated_;
};

// Memory of each worker, filled with a number when it first has work.
template <class T>
class OfWorkers {
 public:
  OfWorkers(const Executor& executor, int64_t count, T start)
      : count_(count), start_(start), memory_(static_cast<size_t>(executor.threads())) {}

  T* of(int worker) {
    Scratch& memory = memory_[static_cast<size_t>(worker)];
    if (memory.bytes() == 0) {
      memory = Scratch::array<T>({count_});
      std::fill_n(memory.template as<T>(), count_, start_);
    }
    return memory.template as<T>();
  }
  // Joins the numbers of the columns of each channel.
  template <class Join>
  std::vector<T> joined(int64_t channels, Join join_two) const {
    std::vector<T> result(static_cast<size_t>(channels), start_);
    for (const Scratch& memory : memory_) {
      if (memory.bytes() == 0) continue;
      const T* const numbers = memory.template as<T>();
      for (int64_t first = 0; first < count_; first += channels)
        for (int64_t c = 0; c < channels; ++c) {
          T& channel = result[static_cast<size_t>(c)];
          channel = join_two(channel, numbers[first + c]);
        }
    }
    return result;
  }

 private:
  int64_t count_;
  T start_;
  std::vector<Scratch> memory_;
};

// The rows from the first number of a part of a tensor on, where `all` are those of the tensor.
template <class Rows>
Rows rows_of(const BlockedPart& part, const BlockedOperand& to, const Rows& all) {
  const int64_t offset = part.mantissas - to.mantissas;
  return all.from(offset / part.stride, offset % part.stride);
}

// Produces the numbers where they belong or, if that is nowhere, in a buffer, and quantizes them
// while they are in a cache.
template <class Rows>
void produce_and_quantize(const BlockedShape& shape, const Rows& all, const BlockedOperand& to,
                          void (*produce)(const Rows&, int64_t, int64_t),
                          const PassKernels& kernels, Executor& executor) {
  OfWorkers<float> buffers(executor, most_numbers(shape), 0);
  const auto work = [&](int worker, const BlockedPart& piece) {
    for_strips(piece, [&](BlockedPart strip) {
      Rows rows = rows_of(strip, to, all);
      if (all.out == nullptr) {
        rows.out = buffers.of(worker);
        strip.x_stride = rows.out_stride = strip.columns;
      }
      strip.x = rows.out;
      produce(rows, strip.rows, strip.columns);
      kernels.quantize_blocks(strip);
    });
  };
  run_stages(executor, {{loop_over_pieces(shape, nullptr, to, work)}});
}

// The sum goes to memory anyway, and is quantized while it is in a cache.
void sum_and_quantize(const BlockedShape& shape, int64_t channels, const RectifiedRows& all,
                      const BlockedOperand& to, float* low, float* high, const PassKernels& kernels,
                      Executor& executor) {
  OfWorkers<float> lows(executor, shape.columns, std::numeric_limits<float>::infinity());
  OfWorkers<int32_t> highs(executor, shape.columns, 0);
  const auto work = [&](int worker, const BlockedPart& piece) {
    RectifiedRows with_extremes = all;
    with_extremes.low = lows.of(worker);
    with_extremes.high_bits = highs.of(worker);
    for_strips(piece, [&](BlockedPart strip) {
      const RectifiedRows rows = rows_of(strip, to, with_extremes);
      kernels.rectified_sum(rows, strip.rows, strip.columns);
      strip.x = rows.out;
      kernels.quantize_blocks(strip);
    });
  };
  run_then_combine(executor, loop_over_pieces(shape, nullptr, to, work), 1, [&](int64_t) {
    const auto least = lows.joined(channels, [](float a, float b) { return std::min(a, b); });
    const auto most = highs.joined(channels, [](int32_t a, int32_t b) { return std::max(a, b); });
    store_extremes(channels, least.data(), most.data(), low, high);
  });
}

}  // namespace

void rectified_operand(const BlockedShape& shape, int64_t channels, const Rectified& in,
                       const BlockedOperand& to, const RectifiedSum& out,
                       const PassKernels& kernels, Executor& executor) {
  const OfColumns mean(in.mean, 0, shape, channels), scale(in.scale, 1, shape, channels);
  const OfColumns shift(in.shift, 0, shape, channels);
  RectifiedRows all{};
  all.x = in.x;
  all.mean = mean.numbers();
  all.scale = scale.numbers();
  all.shift = shift.numbers();
  all.positive = out.positive;
  all.stride = all.out_stride = shape.columns;
  if (out.low == nullptr)
    return produce_and_quantize(shape, all, to, kernels.rectified, kernels, executor);
  all.residual = in.residual;
  all.out = out.y;
  sum_and_quantize(shape, channels, all, to, out.low, out.high, kernels, executor);
}

void masked_operand(const BlockedShape& shape, const float* x, const bool* positive,
                    const BlockedOperand& to, const PassKernels& kernels, Executor& executor) {
  const MaskedRows all{x, positive, nullptr, shape.columns, 0};
  produce_and_quantize(shape, all, to, kernels.masked, kernels, executor);
}

void gradient_operand(const BlockedShape& shape, int64_t channels, const Gradient& in,
                      const BlockedOperand& to, const PassKernels& kernels, Executor& executor) {
  const OfColumns scale(in.scale, 1, shape, channels), offset(in.offset, 0, shape, channels);
  const OfColumns slope(in.slope, 0, shape, channels);
  const OfColumns mean(in.mean, 0, shape, channels), shift(in.shift, 0, shape, channels);
  GradientRows all{};
  all.g = in.g;
  all.x = in.x;
  all.scale = scale.numbers();
  all.offset = offset.numbers();
  all.slope = slope.numbers();
  if (in.mean != nullptr) {
    all.mean = mean.numbers();
    all.shift = shift.numbers();
  }
  all.stride = shape.columns;
  produce_and_quantize(shape, all, to, kernels.gradient, kernels, executor);
}

void pooled_operand(const BlockedShape& shape, const Pool& pool, const float* x,
                    const BlockedOperand& to, float* out, const PassKernels& kernels,
                    Executor& executor) {
  const PooledRows all{&pool, x, 0, shape.columns, out, shape.columns};
  produce_and_quantize(shape, all, to, kernels.max_of_windows, kernels, executor);
}

}  // namespace dfpjax
