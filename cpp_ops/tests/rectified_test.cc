// Runs the passes that rectify on every path that this CPU supports, against plain loops. Tensors
// have exactly their stated size, so the sanitizers see every access outside of them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "passes/channel_sums.h"
#include "passes/kernels/table.h"
#include "runtime/scratch.h"
#include "tests/every_path.h"

namespace dfpjax {
namespace {

// x[groups][rows][channels], a residual or cotangents, and numbers for each channel.
struct Operands {
  ChannelShape shape;
  Values x, other, mean, scale, shift;

  size_t at(int64_t group, int64_t row, int64_t channel) const {
    return static_cast<size_t>((group * shape.rows + row) * shape.channels + channel);
  }
  // As the passes compute it, and XLA: the product and the addition are rounded once.
  float normalized(size_t i, size_t c) const {
    return std::fma(x[i] - mean[c], scale[c], shift[c]);
  }
};

Operands random_operands(const ChannelShape& shape, std::mt19937* random) {
  const int64_t size = shape.groups * shape.rows * shape.channels;
  const int64_t results = shape.groups * shape.channels;
  return {shape,
          normal(size, 1, 1, random),
          normal(size, 0, 1, random),
          normal(results, 1, 1, random),
          normal(results, 0, 1, random),
          normal(results, 0, 1, random)};
}

std::string words(const std::string& name, const ChannelShape& shape) {
  return name + ", " + std::to_string(shape.groups) + " x " + std::to_string(shape.rows) + " x " +
         std::to_string(shape.channels);
}

// All NaNs are the same, but the two zeros are not.
bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

bool all_same(const Values& a, const Values& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same);
}

void check_sum(const Operands& in) {
  const ChannelShape& shape = in.shape;
  const size_t size = in.x.size(), results = in.mean.size();
  Values y(size), low(results, kInfinity), high(results, 0.0F);
  for (size_t i = 0; i < size; ++i) {
    const auto channels = static_cast<size_t>(shape.channels);
    const size_t c = i / (static_cast<size_t>(shape.rows) * channels) * channels + i % channels;
    const float sum = in.normalized(i, c) + in.other[i];
    y[i] = std::isnan(sum) || sum > 0 ? sum : 0.0F;
    low[c] = std::isnan(low[c]) || std::isnan(y[i]) ? kNan : std::min(low[c], y[i]);
    high[c] = std::isnan(high[c]) || std::isnan(y[i]) ? kNan : std::max(high[c], y[i]);
  }
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    for (const bool masked : {true, false}) {
      const std::string where = words(name, shape) + (masked ? "" : ", without a mask");
      Values actual(size, 7.0F), least(results, 7.0F), most(results, 7.0F);
      // The sanitizers reject a bool whose byte is neither 0 nor 1.
      const std::unique_ptr<bool[]> positive(new bool[size]());
      const Rectified operands{in.x.data(), in.other.data(), in.mean.data(), in.scale.data(),
                               in.shift.data()};
      const RectifiedSum out{actual.data(), masked ? positive.get() : nullptr, least.data(),
                             most.data()};
      rectified_sum(shape, operands, out, kernels, executor);
      expect(all_same(actual, y), "rectified sum, " + where);
      expect(all_same(least, low), "least, " + where);
      expect(all_same(most, high), "greatest, " + where);
      for (size_t i = 0; i < size; ++i)
        expect(positive[i] == (masked && y[i] > 0), "where it is positive, " + where);
    }
  });
}

void check_sums(const Operands& in) {
  const ChannelShape& shape = in.shape;
  const auto results = static_cast<int64_t>(in.mean.size());
  Values first;
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    const std::string where = words(name, shape);
    Values sums = room(results), products = room(results);
    const Paired paired{in.other.data(), in.x.data(), in.mean.data(), in.scale.data(),
                        in.shift.data()};
    paired_sums(shape, paired, sums.data(), products.data(), kernels, executor);
    Values all = sums;
    all.insert(all.end(), products.begin(), products.end());
    if (first.empty()) first = all;
    expect(all_same(all, first), "other bits, " + where);
    for (int64_t group = 0; group < shape.groups; ++group)
      for (int64_t channel = 0; channel < shape.channels; ++channel) {
        const auto c = static_cast<size_t>(group * shape.channels + channel);
        double sum = 0, product = 0, of_sum = 0, of_product = 0;
        for (int64_t row = 0; row < shape.rows; ++row) {
          const size_t i = in.at(group, row, channel);
          const double centred = double{in.x[i]} - in.mean[c];
          const double counted = in.normalized(i, c) > 0 ? in.other[i] : 0;
          sum += counted, of_sum += std::abs(counted);
          product += counted * centred, of_product += std::abs(counted * centred);
        }
        expect(std::isnan(sum) ? std::isnan(sums[c]) : near(sums[c], sum, of_sum),
               "sums, " + where);
        expect(
            std::isnan(product) ? std::isnan(products[c]) : near(products[c], product, of_product),
            "products, " + where);
      }
  });
}

void check_special(bool quick, std::mt19937* random) {
  const ChannelShape shape{2, 700, 53};
  for (const float special : {kNan, -kNan, kInfinity, -kInfinity, 3e38F, -0.0F, 1e-45F})
    for (int operand = 0; operand < (quick ? 2 : 5); ++operand) {
      Operands in = random_operands(shape, random);
      Values* const of[] = {&in.x, &in.other, &in.mean, &in.scale, &in.shift};
      for (const int64_t channel : {3, 40, 52}) {
        const auto of_channel = static_cast<size_t>(shape.channels + channel);
        (*of[operand])[operand < 2 ? in.at(1, 650, channel) : of_channel] = special;
      }
      check_sum(in);
      if (std::isnan(special)) check_sums(in);
    }
}

// Subnormal numbers, zeros of both signs, and sums that are exactly zero.
void check_small(std::mt19937* random) {
  const ChannelShape shape{1, 300, 37};
  for (const float scale : {1e-38F, 1e-40F, 1e-44F}) {
    Operands in = random_operands(shape, random);
    for (Values* v : {&in.x, &in.other, &in.mean, &in.shift})
      for (float& value : *v) value *= scale;
    check_sum(in);
    check_sums(in);
  }
  Operands whole = random_operands(shape, random);
  for (Values* v : {&whole.x, &whole.other, &whole.mean, &whole.scale, &whole.shift})
    for (float& value : *v) value = std::nearbyint(value);
  check_sum(whole);
  check_sums(whole);
}

}  // namespace

void run_test(bool quick) {
  std::mt19937 random(1);
  for (const int64_t channels : {0, 1, 3, 16, 32, 37, 48, 100})
    for (const int64_t rows : {0, 1, 31, 32, 33, 700}) {
      if (quick && rows * channels > 700) continue;
      for (const int64_t groups : {0, 1, 3}) {
        const Operands in = random_operands({groups, rows, channels}, &random);
        check_sum(in);
        check_sums(in);
      }
    }
  for (const ChannelShape& shape : {ChannelShape{1, 40000, 1}, ChannelShape{2, 3000, 48}}) {
    if (quick) continue;
    const Operands in = random_operands(shape, &random);
    check_sum(in);
    check_sums(in);
  }
  check_special(quick, &random);
  check_small(&random);
}

}  // namespace dfpjax
