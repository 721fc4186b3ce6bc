// Runs the passes over activations on every path that this CPU supports, against plain loops.
// Tensors have exactly their stated size, so the sanitizers see every access outside of them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "passes/channel_sums.h"
#include "passes/kernels/table.h"
#include "passes/local_response.h"
#include "passes/pooling.h"
#include "passes/quantize.h"
#include "runtime/scratch.h"
#include "tests/every_path.h"

namespace dfpjax {
namespace {

// --- sums over all but the channels ---

void check_sums(const ChannelShape& shape, std::mt19937* random) {
  const int64_t size = shape.groups * shape.rows * shape.channels;
  const int64_t results = shape.groups * shape.channels;
  const Values x = normal(size, 1, 2, random), g = normal(size, 0, 1, random);
  const Values centre = normal(results, 1, 1, random);
  Values first;
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    const std::string where = name + ", " + std::to_string(shape.groups) + " x " +
                              std::to_string(shape.rows) + " x " + std::to_string(shape.channels);
    Values sums = room(results), squares = room(results), low = room(results);
    Values high = room(results), totals = room(results), products = room(results);
    const Moments out{sums.data(), squares.data(), low.data(), high.data()};
    moments(shape, x.data(), out, kernels, executor);
    const Paired paired{g.data(), x.data(), centre.data(), nullptr, nullptr};
    paired_sums(shape, paired, totals.data(), products.data(), kernels, executor);
    Values all;
    for (const Values* v : {&sums, &squares, &low, &high, &totals, &products})
      all.insert(all.end(), v->begin(), v->end());
    if (first.empty()) first = all;
    expect(same_bits(all, first), "other bits, " + where);
    for (int64_t i = 0; i < results; ++i) {
      double sum = 0, square = 0, total = 0, product = 0, magnitude = 0, of_g = 0, of_products = 0;
      float least = kInfinity, most = -kInfinity;
      for (int64_t row = 0; row < shape.rows; ++row) {
        const int64_t group = i / shape.channels;
        const auto at =
            static_cast<size_t>((group * shape.rows + row) * shape.channels + i % shape.channels);
        const double value = x[at];
        const double pair = g[at] * (value - centre[static_cast<size_t>(i)]);
        sum += value, square += value * value, magnitude += std::abs(value);
        total += g[at], product += pair;
        of_g += std::abs(g[at]), of_products += std::abs(pair);
        least = std::min(least, x[at]), most = std::max(most, x[at]);
      }
      const auto at = static_cast<size_t>(i);
      expect(near(sums[at], sum, magnitude), "sums, " + where);
      expect(near(squares[at], square, square), "squares, " + where);
      expect(low[at] == least && high[at] == most, "extremes, " + where);
      expect(near(totals[at], total, of_g), "sums of g, " + where);
      expect(near(products[at], product, of_products), "products, " + where);
    }
  });
}

void check_special_channels() {
  const ChannelShape shape{1, 700, 40};
  Values x(static_cast<size_t>(shape.rows * shape.channels), 1.0F);
  const auto at = [&](int64_t row, int64_t channel) -> float& {
    return x[static_cast<size_t>(row * shape.channels + channel)];
  };
  at(600, 3) = kNan;
  at(5, 17) = kInfinity;
  at(6, 35) = -kInfinity;
  for (int64_t row = 0; row < shape.rows; ++row) at(row, 39) = 1e-41F;
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    Values sums = room(40), squares = room(40), low = room(40), high = room(40);
    const Moments out{sums.data(), squares.data(), low.data(), high.data()};
    moments(shape, x.data(), out, kernels, executor);
    for (size_t c = 0; c < 40; ++c) {
      const std::string where = name + ", channel " + std::to_string(c);
      if (c == 3) {
        for (const Values* v : {&sums, &squares, &low, &high})
          expect(std::isnan((*v)[c]), "a NaN is lost, " + where);
      } else if (c == 17) {
        expect(sums[c] == kInfinity && high[c] == kInfinity && low[c] == 1, where);
      } else if (c == 35) {
        expect(sums[c] == -kInfinity && low[c] == -kInfinity && high[c] == 1, where);
      } else if (c == 39) {
        expect(low[c] == 1e-41F && high[c] == 1e-41F && near(sums[c], 700 * 1e-41, 7e-39), where);
      } else {
        expect(sums[c] == 700 && squares[c] == 700 && low[c] == 1 && high[c] == 1, where);
      }
    }
  });
}

// --- quantization ---

void check_quantize(const Values& x, int bits) {
  double largest = 0;
  bool finite = true;
  for (const float v : x) {
    largest = std::max(largest, std::abs(static_cast<double>(v)));
    finite = finite && std::isfinite(v);
  }
  const int32_t log2 = !finite ? kNotFinite : largest == 0 ? -149 : std::ilogb(largest);
  const int32_t exponent = log2 - (bits - 2);
  const double limit = (1 << (bits - 1)) - 1;
  std::vector<int16_t> mantissas;
  for (const float v : x) {
    const double scaled = finite ? std::nearbyint(std::ldexp(double{v}, -exponent)) : 0;
    mantissas.push_back(static_cast<int16_t>(std::clamp(scaled, -limit, limit)));
  }
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    const auto count = static_cast<int64_t>(x.size());
    const std::string where =
        name + ", " + std::to_string(count) + " numbers, " + std::to_string(bits) + " bits";
    std::vector<int16_t> actual = room<int16_t>(count);
    int32_t actual_exponent = 7, most = 7;
    quantize(x.data(), count, bits, actual.data(), &actual_exponent, kernels, executor);
    expect(actual_exponent == exponent && same_bits(actual, mantissas), "quantize, " + where);
    largest_magnitude(x.data(), count, &most, kernels, executor);
    float value;
    std::memcpy(&value, &most, sizeof value);
    expect(finite ? value == static_cast<float>(largest) : !std::isfinite(value),
           "largest magnitude, " + where);
  });
}

void check_quantization(std::mt19937* random) {
  for (const int64_t count : {0, 1, 15, 16, 17, 63, 64, 65, 1000, 3 * (1 << 16) + 5}) {
    const Values x = normal(count, 0, 1, random);
    check_quantize(x, 16);
    if (count > 1000) continue;
    for (const int bits : {2, 3, 8, 15}) check_quantize(x, bits);
    for (const float scale : {3e-45F, 1e-40F, 1e-38F, 1e-30F, 1e30F, 5e37F}) {
      Values scaled = x;
      for (float& v : scaled) v *= scale;
      check_quantize(scaled, 16);
      check_quantize(scaled, 5);
    }
  }
  check_quantize(Values(70, 0.0F), 16);
  check_quantize(Values(70, -0.0F), 16);
  for (const float special : {kNan, kInfinity, -kInfinity, -kNan})
    for (const size_t at : {size_t{0}, size_t{40}, size_t{69}}) {
      Values x(70, 1.0F);
      x[at] = special;
      check_quantize(x, 16);
    }
  // Ties, and numbers that round up to more than full scale.
  Values ties;
  for (int i = -70; i <= 70; ++i) ties.push_back(static_cast<float>(i) / 2);
  for (int bits = 2; bits <= 8; ++bits) check_quantize(ties, bits);
  check_quantize({std::nextafter(2.0F, 0.0F), -std::nextafter(2.0F, 0.0F), 1.0F}, 16);
}

// --- maximum pooling ---

void check_pooling(const Pool& pool, bool with_ties, std::mt19937* random) {
  const PoolAxis &rows = pool.height, &columns = pool.width;
  const int64_t in = pool.images * rows.in * columns.in * pool.channels;
  const int64_t out = pool.images * rows.out * columns.out * pool.channels;
  Values x = normal(in, 0, 1, random);
  if (with_ties)
    for (float& v : x) v = std::nearbyint(v);  // and zeros of both signs
  for (size_t i = 50; i < x.size(); i += 97) x[i] = kNan;
  for (size_t i = 60; i < x.size(); i += 103) x[i] = -kInfinity;
  const Values g = normal(out, 0, 1, random);
  Values maxima = room(out), gradient(x.size(), 0.0F);
  for (int64_t o = 0; o < out; ++o) {
    const int64_t c = o % pool.channels, j = o / pool.channels % columns.out;
    const int64_t i = o / pool.channels / columns.out % rows.out;
    const int64_t image = o / pool.channels / columns.out / rows.out;
    constexpr int64_t kOutside = -1;
    int64_t selected = kOutside;
    float most = -kInfinity, of_selected = kNan;
    for (int64_t di = 0; di < rows.window; ++di)
      for (int64_t dj = 0; dj < columns.window; ++dj) {
        const int64_t row = i * rows.stride - rows.padding + di;
        const int64_t column = j * columns.stride - columns.padding + dj;
        int64_t at = kOutside;
        if (row >= 0 && row < rows.in && column >= 0 && column < columns.in)
          at = ((image * rows.in + row) * columns.in + column) * pool.channels + c;
        const float value = at == kOutside ? -kInfinity : x[static_cast<size_t>(at)];
        if (std::isnan(value) || value > most || (value == most && !std::signbit(value)))
          most = value;
        // The rule of XLA: take the next value, unless the one before is at least as great.
        if (of_selected >= value) continue;
        selected = at;
        of_selected = value;
      }
    maxima[static_cast<size_t>(o)] = most;
    if (selected != kOutside) gradient[static_cast<size_t>(selected)] += g[static_cast<size_t>(o)];
  }
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    const std::string where = name + ", " + std::to_string(pool.channels) + " channels, window " +
                              std::to_string(rows.window) + " x " + std::to_string(columns.window);
    Values actual = room(out), actual_gradient = room(in);
    max_pool(pool, x.data(), actual.data(), kernels, executor);
    for (size_t i = 0; i < actual.size(); ++i)
      expect(std::isnan(maxima[i]) ? std::isnan(actual[i]) : actual[i] == maxima[i],
             "maxima, " + where);
    for (size_t i = 0; i < actual.size(); ++i)
      expect(std::isnan(maxima[i]) || std::signbit(actual[i]) == std::signbit(maxima[i]),
             "sign of a zero, " + where);
    max_pool_gradient(pool, g.data(), x.data(), actual_gradient.data(), kernels, executor);
    expect(actual_gradient == gradient, "gradient, " + where);
  });
}

void check_pools(std::mt19937* random) {
  // In, out, window, stride, padding.
  const PoolAxis plain{8, 4, 2, 2, 0}, overlapping{9, 4, 3, 2, 0}, padded{7, 4, 3, 2, 1};
  const PoolAxis dense{6, 6, 3, 1, 1}, cut{5, 3, 2, 2, 0}, whole{4, 1, 4, 1, 0},
      gaps{9, 3, 1, 4, 0};
  const PoolAxis one{1, 1, 1, 1, 0};
  for (const int64_t channels : {1, 3, 16, 17, 37, 100})
    for (const bool with_ties : {false, true}) {
      check_pooling({2, channels, plain, overlapping}, with_ties, random);
      check_pooling({1, channels, padded, dense}, with_ties, random);
      check_pooling({3, channels, cut, gaps}, with_ties, random);
      check_pooling({1, channels, whole, one}, with_ties, random);
    }
  check_pooling({1, 1000, padded, padded}, true, random);
  const PoolAxis wide{11, 10, 6, 1, 2}, many{50, 24, 3, 2, 0}, long_strides{9, 2, 4, 7, 3};
  for (const int64_t channels :
       {2, 40}) {  // bands of rows that share windows, and the same for few
    check_pooling({1, channels, wide, wide}, true, random);
    check_pooling({1, channels, many, wide}, true, random);
    check_pooling({2, channels, long_strides, many}, true, random);
  }
  check_pooling({40, 5, one, plain}, true, random);
  check_pooling({0, 5, plain, plain}, false, random);
  check_pooling({2, 0, plain, plain}, false, random);
}

// Large gradients are stored past the caches, if vectors are aligned.
void check_large_pool(std::mt19937* random) {
  const Pool pool{3, 32, {212, 106, 2, 2, 0}, {211, 105, 3, 2, 0}};
  const int64_t size = pool.images * pool.height.in * pool.width.in * pool.channels;
  const Values x = normal(size, 0, 1, random);
  const Values g =
      normal(pool.images * pool.height.out * pool.width.out * pool.channels, 0, 1, random);
  constexpr int64_t kLine = 16;
  Values first;
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    Values memory = room(size + kLine);
    for (const int64_t misaligned : {0, 3}) {
      const auto address = reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float);
      const int64_t begin = (kLine - static_cast<int64_t>(address % kLine) + misaligned) % kLine;
      float* const out = memory.data() + begin;
      max_pool_gradient(pool, g.data(), x.data(), out, kernels, executor);
      Values actual(out, out + size);
      if (first.empty()) first = actual;
      expect(actual == first, "large gradient, " + name);
    }
  });
}

// --- local response normalization ---

void check_response(const Response& response, int64_t rows, int64_t channels,
                    std::mt19937* random) {
  const Values x = normal(rows * channels, 0, 9, random), g = normal(rows * channels, 0, 1, random);
  const auto divisor = [&](int64_t row, int64_t channel) {
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c)
      if (std::abs(c - channel) <= response.reach) {
        const double value = x[static_cast<size_t>(row * channels + c)];
        sum += value * value;
      }
    return response.k + response.alpha * sum;
  };
  Values first;
  on_every_path([&](const PassKernels& kernels, Executor& executor, const std::string& name) {
    const std::string where = name + ", " + std::to_string(rows) + " x " +
                              std::to_string(channels) + ", reach " +
                              std::to_string(response.reach);
    Values y = room(rows * channels), gradient = room(rows * channels);
    local_response(response, rows, channels, x.data(), y.data(), kernels, executor);
    local_response_gradient(response, rows, channels, g.data(), x.data(), gradient.data(), kernels,
                            executor);
    Values all = y;
    all.insert(all.end(), gradient.begin(), gradient.end());
    if (first.empty()) first = all;
    expect(same_bits(all, first), "other bits, " + where);
    for (int64_t row = 0; row < std::min<int64_t>(rows, 40); ++row)
      for (int64_t channel = 0; channel < std::min<int64_t>(channels, 100); ++channel) {
        const auto at = static_cast<size_t>(row * channels + channel);
        const double scale = std::pow(divisor(row, channel), -0.75);
        double through_others = 0, magnitudes = 0;
        for (int64_t c = 0; c < channels; ++c)
          if (std::abs(c - channel) <= response.reach) {
            const auto other = static_cast<size_t>(row * channels + c);
            const double d = std::pow(divisor(row, c), -1.75) * g[other] * x[other] * x[at];
            through_others += 1.5 * response.alpha * d;
            magnitudes += 1.5 * response.alpha * std::abs(d);
          }
        expect(near(y[at], x[at] * scale, std::abs(x[at] * scale)), "response, " + where);
        expect(near(gradient[at], g[at] * scale - through_others,
                    std::abs(g[at] * scale) + magnitudes),
               "gradient of the response, " + where);
      }
  });
}

void check_responses(std::mt19937* random) {
  for (const int64_t channels : {0, 1, 5, 15, 16, 17, 96})
    for (const int64_t rows : {0, 1, 33})
      for (const int64_t reach : {0, 1, 2, 20})
        if (reach <= channels) check_response({reach, 2, 1e-2F}, rows, channels, random);
  check_response({2, 1, 1e-4F}, 5000, 16, random);  // several blocks of rows
  check_response({2, 1, 1e-4F}, 3, 40000, random);  // each row is a block
}

void check_refusals() {
  const PoolAxis good{8, 4, 2, 2, 0};
  constexpr int64_t kHuge = int64_t{1} << 62;
  expect(check_pool({1, 1, good, good}).empty(), "good windows are refused");
  const struct {
    PoolAxis axis;
    const char* what;
  } bad[] = {
      {{0, 4, 2, 2, 0}, "no pixels"},    {{8, 0, 2, 2, 0}, "no pixels"},
      {{8, 4, 0, 2, 0}, "positive"},     {{8, 4, 2, 0, 0}, "positive"},
      {{8, 4, -1, 2, 0}, "positive"},    {{8, 4, 2, 2, 2}, "less than the window"},
      {{8, 4, 2, 2, -1}, "less than"},   {{8, 5, 2, 2, 0}, "holds no pixel"},
      {{8, 9, 2, 1, 0}, "no pixel"},     {{8, 2, 2, kHuge, 1}, "no pixel"},
      {{8, 3, 2, kHuge, 1}, "no pixel"}, {{8, 4, 1025, 2, 0}, "at most 1024 pixels"},
      {{8, 4, kHuge, 2, 0}, "1024"},     {{8, kHuge, 2, kHuge, 0}, "no pixel"},
  };
  for (const auto& [axis, what] : bad) {
    const std::string height = check_pool({1, 1, axis, good});
    const std::string width = check_pool({1, 1, good, axis});
    expect(height.find("height: ") == 0 && height.find(what) != std::string::npos, height);
    expect(width.find("width: ") == 0 && width.find(what) != std::string::npos, width);
  }
  const PoolAxis large{50, 1, 33, 1, 0};
  expect(check_pool({1, 1, large, large}).find("window: ") == 0, "a window of 33 x 33");
}

}  // namespace

void run_test(bool) {
  std::mt19937 random(1);
  for (const int64_t channels : {0, 1, 3, 16, 37, 100})
    for (const int64_t rows : {0, 1, 31, 33, 700})
      for (const int64_t groups : {0, 1, 3}) check_sums({groups, rows, channels}, &random);
  check_sums({1, 40000, 1}, &random);
  check_sums({2, 3000, 48}, &random);
  check_special_channels();
  check_quantization(&random);
  check_pools(&random);
  check_large_pool(&random);
  check_responses(&random);
  check_refusals();
}

}  // namespace dfpjax
