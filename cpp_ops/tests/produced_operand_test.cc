// Runs the passes that produce an operand on every path that this CPU supports. The operand has the
// bits of quantize_blocks of the tensor that plain loops compute with std::fma. Tensors have
// exactly their stated size, so the sanitizers see every access outside of them.
#include "passes/produced_operand.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "passes/block_quantize.h"
#include "passes/channel_sums.h"
#include "passes/kernels/table.h"
#include "tests/every_path.h"

namespace dfpjax {
namespace {

// x, a residual or cotangents of the shape of an operand, and numbers for each channel.
struct Operands {
  BlockedShape shape;
  int64_t channels;
  Values x, other, mean, scale, shift, slope;
};

// Which of the operands are given.
enum class Kind {
  kBias,
  kMaskedBias,
  kNormalization,
  kSum,
  kMaskedSum,
  kGradient,
  kRectifiedGradient,
  kMasked
};
constexpr Kind kKinds[] = {
    Kind::kBias,      Kind::kMaskedBias, Kind::kNormalization,     Kind::kSum,
    Kind::kMaskedSum, Kind::kGradient,   Kind::kRectifiedGradient, Kind::kMasked};
constexpr BlockRounding kRoundings[] = {BlockRounding::kNearest, BlockRounding::kBiased,
                                        BlockRounding::kTruncate, BlockRounding::kOwnBits};

bool has_sum(Kind kind) { return kind == Kind::kSum || kind == Kind::kMaskedSum; }
bool has_mask(Kind kind) { return kind == Kind::kMaskedBias || kind == Kind::kMaskedSum; }
bool is_bias(Kind kind) { return kind == Kind::kBias || kind == Kind::kMaskedBias; }

Operands random_operands(const BlockedShape& shape, int64_t channels, std::mt19937* random) {
  const int64_t size = shape.examples * shape.outer * shape.rows * shape.columns;
  Operands in{shape,
              channels,
              normal(size, 1, 1, random),
              normal(size, 0, 1, random),
              normal(channels, 1, 1, random),
              normal(channels, 0, 1, random),
              normal(channels, 0, 1, random),
              normal(channels, 0, 1, random)};
  for (Values* tensor : {&in.x, &in.other})  // many magnitudes
    for (float& v : *tensor) v = std::ldexp(v, static_cast<int>((*random)() % 16) - 12);
  return in;
}

// What a pass computes before it quantizes.
float produced(const Operands& in, Kind kind, size_t i) {
  const size_t c = i % static_cast<size_t>(in.channels);
  const float normalized = std::fma(in.x[i] - in.mean[c], in.scale[c], in.shift[c]);
  if (kind == Kind::kGradient || kind == Kind::kRectifiedGradient) {
    const bool counts = kind == Kind::kGradient || normalized > 0;
    // With the shift for the offset.
    return std::fma(in.slope[c], in.x[i],
                    std::fma(counts ? in.other[i] : 0.0F, in.scale[c], in.shift[c]));
  }
  if (kind == Kind::kMasked) return in.other[i] > 0 ? in.x[i] : 0.0F;
  float sum = is_bias(kind) ? in.x[i] + in.shift[c] : normalized;
  if (has_sum(kind)) sum += in.other[i];
  return std::isnan(sum) || sum > 0 ? sum : 0.0F;
}

struct Quantized {
  explicit Quantized(const Operands& in)
      : mantissas(room<int16_t>(static_cast<int64_t>(in.x.size()))),
        exponents(room<int32_t>(in.shape.blocks())) {}
  BlockedOperand as(BlockRounding rounding, int bits) {
    return {bits, rounding, nullptr, mantissas.data(), exponents.data()};
  }

  std::vector<int16_t> mantissas;
  std::vector<int32_t> exponents;
};

// The results of a sum with a residual.
struct Sum {
  explicit Sum(const Operands& in)
      : y(room(static_cast<int64_t>(in.x.size()))),
        low(room(in.channels)),
        high(room(in.channels)),
        // The sanitizers reject a bool whose byte is neither 0 nor 1.
        positive(new bool[in.x.size()]()) {}

  Values y, low, high;
  std::unique_ptr<bool[]> positive;
};

void run(const Operands& in, Kind kind, const BlockedOperand& to, Sum* sum,
         const PassKernels& kernels, Executor& executor) {
  if (kind == Kind::kGradient || kind == Kind::kRectifiedGradient) {
    const bool rectified = kind == Kind::kRectifiedGradient;
    const Gradient operands{in.other.data(),
                            in.x.data(),
                            in.scale.data(),
                            in.shift.data(),
                            in.slope.data(),
                            rectified ? in.mean.data() : nullptr,
                            rectified ? in.shift.data() : nullptr};
    return gradient_operand(in.shape, in.channels, operands, to, kernels, executor);
  }
  if (kind == Kind::kMasked) {
    for (size_t i = 0; i < in.x.size(); ++i) sum->positive[i] = in.other[i] > 0;
    return masked_operand(in.shape, in.x.data(), sum->positive.get(), to, kernels, executor);
  }
  const bool bias = is_bias(kind);
  const Rectified operands{in.x.data(), has_sum(kind) ? in.other.data() : nullptr,
                           bias ? nullptr : in.mean.data(), bias ? nullptr : in.scale.data(),
                           in.shift.data()};
  const RectifiedSum out{sum->y.data(), has_mask(kind) ? sum->positive.get() : nullptr,
                         has_sum(kind) ? sum->low.data() : nullptr, sum->high.data()};
  rectified_operand(in.shape, in.channels, operands, to, out, kernels, executor);
}

// All NaNs are the same, but the two zeros are not.
bool all_same(const Values& a, const Values& b) {
  const auto same = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
  };
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same);
}

void check_sum(const Sum& sum, const Values& y, const std::string& where) {
  Values low(sum.low.size(), kInfinity), high(sum.high.size(), 0.0F);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t c = i % low.size();
    low[c] = std::isnan(low[c]) || std::isnan(y[i]) ? kNan : std::min(low[c], y[i]);
    high[c] = std::isnan(high[c]) || std::isnan(y[i]) ? kNan : std::max(high[c], y[i]);
  }
  expect(all_same(sum.y, y), "y, " + where);
  expect(all_same(sum.low, low), "least, " + where);
  expect(all_same(sum.high, high), "greatest, " + where);
}

void check(const Operands& in, Kind kind, BlockRounding rounding, int bits = 16) {
  Values tensor(in.x.size());
  for (size_t i = 0; i < tensor.size(); ++i) tensor[i] = produced(in, kind, i);
  Quantized expected(in);
  TestExecutor one(1);
  quantize_blocks(in.shape, tensor.data(), expected.as(rounding, bits),
                  pass_kernels(Isa::kPortable), one);
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    std::string where = name + ", kind " + std::to_string(static_cast<int>(kind)) + ", rounding " +
                        std::to_string(static_cast<int>(rounding)) + ", " +
                        std::to_string(in.channels) + " channels, ";
    const BlockedShape& shape = in.shape;
    for (const int64_t n : {shape.examples, shape.outer, shape.rows, shape.columns,
                            shape.block_rows, shape.block_columns})
      where += " " + std::to_string(n);
    Quantized actual(in);
    Sum sum(in);
    run(in, kind, actual.as(rounding, bits), &sum, kernels, executor);
    expect(same_bits(actual.exponents, expected.exponents), "exponents, " + where);
    expect(same_bits(actual.mantissas, expected.mantissas), "mantissas, " + where);
    if (has_sum(kind)) check_sum(sum, tensor, where);
    if (kind == Kind::kMasked) return;  // the mask is an operand
    for (size_t i = 0; i < tensor.size(); ++i)
      expect(sum.positive[i] == (has_mask(kind) && tensor[i] > 0),
             "where it is positive, " + where);
  });
}

void check_all(const Operands& in) {
  for (const Kind kind : kKinds)
    for (const BlockRounding rounding : kRoundings) check(in, kind, rounding);
}

void check_shapes(bool quick, std::mt19937* random) {
  for (const int64_t columns : {1, 3, 16, 31, 32, 33, 70, 300})
    for (const int64_t rows : {1, 3, 9})
      for (const auto& [block_rows, block_columns] :
           {std::pair<int64_t, int64_t>{8, 32}, {4, 32}, {1, 16}, {2, 64}, {256, 256}}) {
        check_all(
            random_operands({1, 3, rows, columns, block_rows, block_columns}, columns, random));
        if (quick) return;
      }
  for (const auto& [channels, times] :  // blocks that have all columns
       {std::pair<int64_t, int64_t>{1, 1}, {1, 40}, {3, 1}, {3, 15}, {3, 224}, {16, 3}, {70, 1}})
    for (const int64_t rows : {1, 3, 9})
      for (const int64_t block_rows : {1, 8}) {
        const int64_t columns = channels * times;
        check_all(random_operands({1, 2, rows, columns, block_rows, columns}, channels, random));
      }
  for (const BlockedShape& shape : {
           BlockedShape{1, 1, 1, 70001, 4, 32},  // one row of blocks in several pieces
           BlockedShape{1, 3, 200, 48, 1, 32},   // several rows of blocks at a time
           BlockedShape{1, 7, 30, 384, 8, 32},   // pieces of several strips
           BlockedShape{1, 2, 9, 2050, 8, 32},   // strips of some of the columns
           BlockedShape{1, 1, 300, 1100, 256, 256},
           BlockedShape{1, 2, 11, 4000, 8, 4000},  // blocks larger than the usual buffer
           BlockedShape{1, 300, 7, 33, 2, 16},
       })
    check_all(random_operands(shape, shape.columns, random));
  check_all(random_operands({1, 2, 9, 90, 8, 32}, 1, random));  // the last axis has one channel
  check_all(random_operands({2, 3, 9, 90, 8, 32}, 90, random));
  for (const BlockedShape& shape :
       {BlockedShape{1, 0, 4, 5, 4, 32}, BlockedShape{1, 2, 0, 5, 4, 32}})
    check_all(random_operands(shape, 5, random));
  check_all(random_operands({1, 2, 3, 0, 4, 32}, 0, random));
}

void check_special(std::mt19937* random) {
  const BlockedShape shape{1, 2, 9, 53, 8, 32};
  for (const float special : {kNan, -kNan, kInfinity, -kInfinity, 3e38F, -3e38F, -0.0F, 1e-45F}) {
    for (int operand = 0; operand < 6; ++operand) {
      Operands in = random_operands(shape, 53, random);
      Values* const of[] = {&in.x, &in.other, &in.mean, &in.scale, &in.shift, &in.slope};
      for (const size_t channel : {size_t{3}, size_t{40}, size_t{52}})
        (*of[operand])[operand < 2 ? size_t{53 * 16} + channel : channel] = special;
      for (const Kind kind : kKinds) check(in, kind, BlockRounding::kNearest);
    }
  }
}

// Subnormal numbers, zeros of both signs, and results that are exactly zero or need one rounding.
void check_small(std::mt19937* random) {
  const BlockedShape shape{1, 2, 9, 53, 8, 32};
  for (const float scale : {1e-38F, 1e-40F, 1e-44F}) {
    Operands in = random_operands(shape, 53, random);
    for (Values* v : {&in.x, &in.other, &in.mean, &in.shift})
      for (float& value : *v) value *= scale;
    check_all(in);
  }
  Operands whole = random_operands(shape, 53, random);
  for (Values* v : {&whole.x, &whole.other, &whole.mean, &whole.scale, &whole.shift, &whole.slope})
    for (float& value : *v) value = std::nearbyint(value);
  check_all(whole);
  Operands zeros = random_operands(shape, 53, random);
  for (Values* v : {&zeros.x, &zeros.other, &zeros.mean, &zeros.shift})
    std::fill(v->begin(), v->end(), -0.0F);
  check_all(zeros);
  // 1 - 2^-46 less 1 is 0 if the product is rounded by itself.
  Operands close = random_operands(shape, 53, random);
  std::fill(close.x.begin(), close.x.end(), 1 + 0x1p-23F);
  std::fill(close.mean.begin(), close.mean.end(), 0.0F);
  std::fill(close.scale.begin(), close.scale.end(), -(1 - 0x1p-23F));
  std::fill(close.shift.begin(), close.shift.end(), 1.0F);
  expect(produced(close, Kind::kNormalization, 0) == 0x1p-46F, "the reference rounds twice");
  check_all(close);
}

// The maxima over windows, by plain loops.
Values pooled(const Pool& pool, const Values& x) {
  Values y;
  const PoolAxis &height = pool.height, &width = pool.width;
  for (int64_t image = 0; image < pool.images; ++image)
    for (int64_t i = 0; i < height.out; ++i)
      for (int64_t j = 0; j < width.out; ++j)
        for (int64_t c = 0; c < pool.channels; ++c) {
          float most = -kInfinity;
          for (int64_t di = 0; di < height.window; ++di)
            for (int64_t dj = 0; dj < width.window; ++dj) {
              const int64_t row = i * height.stride - height.padding + di;
              const int64_t column = j * width.stride - width.padding + dj;
              if (row < 0 || row >= height.in || column < 0 || column >= width.in) continue;
              const int64_t at =
                  ((image * height.in + row) * width.in + column) * pool.channels + c;
              const float value = x[static_cast<size_t>(at)];
              if (std::isnan(value) || value > most) most = value;
            }
          y.push_back(most);
        }
  return y;
}

void check_pooled(const Pool& pool, const BlockedShape& shape, bool special, std::mt19937* random) {
  Values x = normal(pool.images * pool.height.in * pool.width.in * pool.channels, 0, 1, random);
  for (float& v : x) v = std::ldexp(v, static_cast<int>((*random)() % 16) - 12);
  for (size_t i = 5; special && i < x.size(); i += 301) x[i] = i % 2 == 0 ? kNan : kInfinity;
  const Values y = pooled(pool, x);
  for (const BlockRounding rounding : kRoundings) {
    const auto mantissas = room<int16_t>(static_cast<int64_t>(y.size()));
    const auto exponents = room<int32_t>(shape.blocks());
    auto expected = mantissas, actual = mantissas;
    auto expected_exponents = exponents, actual_exponents = exponents;
    TestExecutor one(1);
    quantize_blocks(shape, y.data(),
                    {16, rounding, nullptr, expected.data(), expected_exponents.data()},
                    pass_kernels(Isa::kPortable), one);
    on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
      const std::string where = name + ", " + std::to_string(pool.channels) + " channels";
      for (const bool kept : {false, true}) {
        Values out = room(static_cast<int64_t>(y.size()));
        actual = mantissas;
        actual_exponents = exponents;
        pooled_operand(shape, pool, x.data(),
                       {16, rounding, nullptr, actual.data(), actual_exponents.data()},
                       kept ? out.data() : nullptr, kernels, executor);
        expect(same_bits(actual_exponents, expected_exponents), "exponents of maxima, " + where);
        expect(same_bits(actual, expected), "mantissas of maxima, " + where);
        if (kept) expect(all_same(out, y), "maxima, " + where);
      }
    });
  }
}

void check_pools(std::mt19937* random) {
  // In, out, window, stride, padding.
  const PoolAxis plain{8, 4, 2, 2, 0}, overlapping{9, 4, 3, 2, 0}, dense{9, 9, 3, 1, 1};
  const PoolAxis long_row{130, 65, 2, 2, 0}, growing{4, 7, 4, 1, 3};
  const auto check_with = [&](int64_t channels, const PoolAxis& height, const PoolAxis& width) {
    const Pool pool{3, channels, height, width};
    const int64_t rows = height.out * width.out;
    for (const bool special : {false, true}) {
      for (const auto& [block_rows, block_columns] :
           {std::pair<int64_t, int64_t>{8, 32}, {1, 16}, {2, 64}})
        check_pooled(pool, {1, 3, rows, channels, block_rows, block_columns}, special, random);
      const int64_t columns = width.out * channels;  // pixels of a row in a block
      check_pooled(pool, {1, 3, height.out, columns, 8, columns}, special, random);
    }
  };
  for (const int64_t channels : {1, 3, 20, 33, 70}) {
    check_with(channels, plain, overlapping);
    check_with(channels, dense, plain);
    check_with(channels, plain, long_row);
    check_with(channels, growing, growing);
  }
  check_with(1100, dense, overlapping);  // parts of the channels
  for (const int64_t images : {0, 1})
    check_pooled({images, 1 - images, plain, plain}, {1, images, 16, 1 - images, 8, 32}, false,
                 random);
}

}  // namespace

void run_test(bool quick) {
  std::mt19937 random(1);
  check_shapes(quick, &random);
  check_special(&random);
  check_small(&random);
  check_pools(&random);
  for (int bits = 2; bits < 16; ++bits) {
    const Operands in = random_operands({1, 2, 9, 45, 4, 32}, 45, &random);
    for (const Kind kind : kKinds) check(in, kind, BlockRounding::kNearest, bits);
  }
}

}  // namespace dfpjax
