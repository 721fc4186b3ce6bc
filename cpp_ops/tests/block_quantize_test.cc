// Runs the quantization of blocks on every path that this CPU supports, against a loop over blocks
// in double precision.
#include "passes/block_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "passes/kernels/table.h"
#include "tests/every_path.h"

namespace dfpjax {
namespace {

constexpr BlockRounding kRoundings[] = {BlockRounding::kNearest, BlockRounding::kBiased,
                                        BlockRounding::kTruncate, BlockRounding::kSeed,
                                        BlockRounding::kOwnBits};

struct Quantized {
  std::vector<int16_t> mantissas;
  std::vector<int32_t> exponents;
};

uint32_t hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  return (x ^ (x >> 15)) * 0x846ca68bu;
}

double rounded(double units, BlockRounding rounding, uint32_t random) {
  const double magnitude = std::abs(units);
  if (rounding == BlockRounding::kNearest) return std::nearbyint(units);
  double result = std::floor(magnitude);
  const double dropped = magnitude - result;
  if (rounding == BlockRounding::kBiased) {
    result += dropped >= 0.25;
  } else if (rounding != BlockRounding::kTruncate) {
    const auto threshold = static_cast<float>(random >> 1);
    result += static_cast<double>(threshold) < dropped * 0x1p31 && dropped >= 0x1p-63;
  }
  return std::copysign(result, units);
}

Quantized reference(const BlockedShape& shape, const Values& x, int bits, BlockRounding rounding,
                    const std::vector<uint32_t>& seeds) {
  Quantized result{room<int16_t>(static_cast<int64_t>(x.size())), room<int32_t>(shape.blocks())};
  const int64_t example = shape.outer * shape.rows * shape.columns;
  const double limit = (1 << (bits - 1)) - 1;
  for (int64_t block = 0; block < shape.blocks(); ++block) {
    const int64_t column_block = block % shape.column_blocks();
    const int64_t row_block = block / shape.column_blocks() % shape.row_blocks();
    const int64_t matrix = block / shape.column_blocks() / shape.row_blocks();
    std::vector<int64_t> numbers;  // of the block
    for (int64_t r = row_block * shape.block_rows;
         r < std::min((row_block + 1) * shape.block_rows, shape.rows); ++r)
      for (int64_t c = column_block * shape.block_columns;
           c < std::min((column_block + 1) * shape.block_columns, shape.columns); ++c)
        numbers.push_back((matrix * shape.rows + r) * shape.columns + c);
    double largest = 0;
    bool finite = true;
    for (const int64_t i : numbers) {
      const double value = x[static_cast<size_t>(i)];
      finite = finite && std::isfinite(value);
      largest = std::max(largest, std::abs(value));
    }
    const int32_t log2 = !finite ? kNotFinite : largest == 0 ? -149 : std::ilogb(largest);
    const int32_t exponent = log2 - (bits - 2);
    result.exponents[static_cast<size_t>(block)] = exponent;
    for (const int64_t i : numbers) {
      const float value = x[static_cast<size_t>(i)];
      uint32_t own;
      std::memcpy(&own, &value, sizeof own);
      const uint32_t seed =
          rounding == BlockRounding::kSeed ? seeds[static_cast<size_t>(i / example)] : own;
      const uint32_t random = hash(static_cast<uint32_t>(i % example) ^ hash(seed));
      const double units = finite ? std::ldexp(double{value}, -exponent) : 0;
      result.mantissas[static_cast<size_t>(i)] =
          static_cast<int16_t>(std::clamp(rounded(units, rounding, random), -limit, limit));
    }
  }
  return result;
}

void check(const BlockedShape& shape, const Values& x, int bits, BlockRounding rounding) {
  std::vector<uint32_t> seeds;
  for (int64_t i = 0; i < shape.examples; ++i) seeds.push_back(static_cast<uint32_t>(i * 77));
  const Quantized expected = reference(shape, x, bits, rounding, seeds);
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    std::string where = name + ", " + std::to_string(bits) + " bits, rounding " +
                        std::to_string(static_cast<int>(rounding)) + ", ";
    for (const int64_t n : {shape.examples, shape.outer, shape.rows, shape.columns,
                            shape.block_rows, shape.block_columns})
      where += " " + std::to_string(n);
    Quantized actual{room<int16_t>(static_cast<int64_t>(x.size())), room<int32_t>(shape.blocks())};
    quantize_blocks(
        shape, x.data(),
        {bits, rounding, seeds.data(), actual.mantissas.data(), actual.exponents.data()}, kernels,
        executor);
    expect(same_bits(actual.exponents, expected.exponents), "exponents, " + where);
    expect(same_bits(actual.mantissas, expected.mantissas), "mantissas, " + where);
  });
}

// Numbers of many magnitudes, some of them zero.
Values numbers(const BlockedShape& shape, float scale, std::mt19937* random) {
  Values x = normal(shape.examples * shape.outer * shape.rows * shape.columns, 0, 1, random);
  for (float& v : x) {
    const auto power = static_cast<int>((*random)() % 24) - 20;
    v = (*random)() % 8 == 0 ? 0 : std::ldexp(v, power) * scale;
  }
  return x;
}

void check_shapes(bool quick, std::mt19937* random) {
  for (const int64_t columns : {0, 1, 7, 16, 31, 32, 33, 70, 256, 300})
    for (const int64_t rows : {0, 1, 3, 4, 9})
      for (const auto& [block_rows, block_columns] :
           {std::pair<int64_t, int64_t>{8, 32}, {4, 32}, {1, 16}, {2, 64}, {256, 256}}) {
        const BlockedShape shape{2, 3, rows, columns, block_rows, block_columns};
        const Values x = numbers(shape, 1, random);
        for (const BlockRounding rounding : kRoundings) check(shape, x, 16, rounding);
        if (quick) return;
      }
  for (const int64_t columns : {1, 3, 15, 30, 48, 64, 70, 129, 672})  // all of them in a block
    for (const int64_t rows : {1, 3, 4, 9})
      for (const int64_t block_rows : {1, 4, 256}) {
        const BlockedShape shape{2, 3, rows, columns, block_rows, columns};
        const Values x = numbers(shape, 1, random);
        for (const BlockRounding rounding : kRoundings) check(shape, x, 16, rounding);
      }
  for (const BlockedShape& shape :
       {BlockedShape{0, 3, 4, 5, 4, 32}, BlockedShape{1, 0, 4, 5, 4, 32},
        BlockedShape{1, 1, 1, 70001, 4, 32},  // one row of blocks in several pieces
        BlockedShape{1, 1, 300, 1100, 256, 256}, BlockedShape{1, 300, 7, 33, 2, 16},
        BlockedShape{1, 1, 300, 1100, 256, 1100}, BlockedShape{2, 1, 5, 70001, 4, 70001},
        BlockedShape{2, 2, 3, 0, 4, 1}, BlockedShape{5, 1, 1, 1, 4, 32}})
    for (const BlockRounding rounding : {BlockRounding::kNearest, BlockRounding::kSeed})
      check(shape, numbers(shape, 1, random), 16, rounding);
}

void check_numbers(int64_t block_columns, std::mt19937* random) {
  const BlockedShape shape{2, 2, 6, 45, 4, block_columns};
  for (const BlockRounding rounding : kRoundings) {
    for (int bits = 2; bits <= 16; ++bits) check(shape, numbers(shape, 1, random), bits, rounding);
    for (const float scale : {3e-45F, 1e-40F, 1e-38F, 1e-34F, 1e-30F, 1e30F, 2e37F})
      for (const int bits : {5, 16}) check(shape, numbers(shape, scale, random), bits, rounding);
    for (const float value : {0.0F, -0.0F, std::nextafter(2.0F, 0.0F), -std::nextafter(2.0F, 0.0F)})
      check(shape, Values(2 * 2 * 6 * 45, value), 16, rounding);
    // One number that is not finite, in the first block, the last one and one that is narrow.
    for (const float special : {kNan, -kNan, kInfinity, -kInfinity})
      for (const size_t at : {size_t{0}, size_t{44}, size_t{2 * 2 * 6 * 45 - 1}}) {
        Values x = numbers(shape, 1, random);
        x[at] = special;
        check(shape, x, 16, rounding);
      }
    // The first random bits are 0 for the seed 0. They round up any number that is not tiny.
    for (const float first : {1e-9F, 0x1p-64F, 0x1p-78F, 1e-30F, 1e-40F, -1e-9F}) {
      Values x(2 * 2 * 6 * 45, 1.0F);
      x[0] = first;
      check(shape, x, 16, rounding);
    }
  }
  Values ties;
  for (int i = -270; i < 270; ++i) ties.push_back(static_cast<float>(i) / 4);
  for (const BlockRounding rounding : kRoundings)
    for (int bits = 2; bits <= 9; ++bits)
      check({1, 1, 12, 45, 4, block_columns}, ties, bits, rounding);
}

void check_refusals() {
  expect(check_blocks({1, 1, 1, 1, 256, 16}, 2).empty(), "good blocks are refused");
  for (const int64_t columns : {1, 48, 672})
    expect(check_blocks({1, 1, 1, columns, 4, columns}, 16).empty(), "all columns are refused");
  expect(check_blocks({1, 1, 1, 0, 4, 1}, 16).empty(), "no columns are refused");
  const struct {
    int64_t rows, columns, bits;
    const char* what;
  } bad[] = {{4, 32, 1, "bits: "},
             {4, 32, 17, "bits: "},
             {0, 32, 16, "block: must have rows"},
             {3, 32, 16, "block: must have rows"},
             {512, 32, 16, "block: must have rows"},
             {-4, 32, 16, "block: must have rows"},
             {4, 8, 16, "block: must have columns"},
             {4, 48, 16, "block: must have columns"},
             {4, 512, 16, "block: must have columns"},
             {4, 0, 16, "block: must have columns"}};
  for (const auto& [rows, columns, bits, what] : bad)
    expect(check_blocks({1, 1, 1, 1, rows, columns}, bits).find(what) == 0, what);
}

}  // namespace

void run_test(bool quick) {
  std::mt19937 random(1);
  check_shapes(quick, &random);
  for (const int64_t block_columns : {32, 45}) check_numbers(block_columns, &random);
  check_refusals();
}

}  // namespace dfpjax
