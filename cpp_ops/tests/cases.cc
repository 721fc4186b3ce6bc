#include "tests/cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "tests/executor.h"
#include "tests/reference.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

// A pool whose tasks run only when it is destroyed: nobody may wait for them.
class StuckExecutor : public Executor {
 public:
  ~StuckExecutor() override {
    for (auto& task : tasks_) task();
  }
  int threads() const override { return 4; }
  void schedule(std::function<void()> task) override { tasks_.push_back(std::move(task)); }

 private:
  std::vector<std::function<void()>> tasks_;
};

std::vector<int16_t> make_data(int64_t size, Data kind, std::mt19937* random) {
  std::vector<int16_t> x(static_cast<size_t>(size));
  std::normal_distribution<float> normal;
  for (int16_t& v : x) {
    const float r = normal(*random);
    const auto clip = [](float y) {
      return static_cast<int16_t>(std::fmax(-32767, std::fmin(32767, std::nearbyint(y))));
    };
    switch (kind) {
      case Data::kNormal:
        v = clip(7000 * r);
        break;
      case Data::kMedium:
        v = clip(2500 * r);
        break;
      case Data::kSmall:
        v = clip(300 * r);
        break;
      case Data::kFull:
        v = r < 0 ? -32767 : 32767;
        break;
      case Data::kLowest:  // never from quantization, but sums must not wrap
        v = r < 0.7f ? -32768 : 32767;
        break;
      case Data::kLowestAlone:
        v = -32768;
        break;
      case Data::kOutliers:
        v = (*random)() % 97 == 0 ? clip(60000 * r) : clip(50 * r);
        break;
    }
  }
  return x;
}

// The longest chain that cannot overflow, whatever the signs.
int64_t longest_bounded(const std::vector<int16_t>& a, const std::vector<int16_t>& b) {
  int64_t most_a = 1, most_b = 1;
  for (int16_t x : a) most_a = std::max<int64_t>(most_a, std::abs(x));
  for (int16_t x : b) most_b = std::max<int64_t>(most_b, std::abs(x));
  return std::numeric_limits<int32_t>::max() / (most_a * most_b);
}

}  // namespace

std::vector<int64_t> encode(const std::vector<PartCode>& parts, const std::vector<Grid>& grids) {
  std::vector<int64_t> code;
  const auto put = [&](std::initializer_list<int64_t> values) { code.insert(code.end(), values); };
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.size()); };
  put({3, size(grids)});
  for (const Grid& grid : grids)
    put({grid.outer, grid.columns, grid.block_rows, grid.block_columns, grid.dithered});
  put({size(parts)});
  for (const PartCode& p : parts) {
    put({p.mode, p.base_a, p.base_b, p.base_c, p.blocks_per_split, p.tile});
    put({size(p.g), size(p.m), size(p.n), size(p.k), size(p.windows)});
    for (const auto* dims : {&p.g, &p.m, &p.n, &p.k})
      for (const Dim& d : *dims)
        put({d.extent, d.stride_a, d.stride_b, d.stride_c, d.exp_a, d.exp_b, d.window, d.coef});
    for (const Window& w : p.windows) put({w.size, w.stride_a, w.offset});
  }
  return code;
}

void check(const Case& t, Data kind, int32_t exponent, std::mt19937* random, int chain) {
  const std::vector<int64_t> code = encode(t.parts, t.grids);
  std::vector<Part> parts;
  const BufferSizes sizes{t.a, t.b, t.c, t.exponents_a, t.exponents_b};
  const std::string error =
      decode_plan(code.data(), static_cast<int64_t>(code.size()), sizes, &parts);
  if (!error.empty()) {
    return fail(t.name + ": " + error);
  }
  const std::vector<int16_t> a = make_data(t.a, kind, random), b = make_data(t.b, kind, random);
  std::vector<int32_t> ea(t.exponents_a), eb(t.exponents_b);
  for (int32_t& e : ea) e = exponent + static_cast<int32_t>((*random)() % t.spread);
  for (int32_t& e : eb) e = -20 + static_cast<int32_t>((*random)() % t.spread);
  // A few are not finite. In Winograd parts, some are so small that they take no part.
  const uint32_t kinds = t.parts[0].tile > 0 ? 6 : 1;
  if (t.spread > 20)
    for (auto* exponents : {&ea, &eb})
      for (int32_t& e : *exponents)
        if (const uint32_t kind = (*random)() % 300; kind < kinds) e = kind == 0 ? 1 << 20 : -163;
  const float missing = -12345.0f;
  std::vector<float> expected(t.c, missing);
  const ReferenceCounts wanted =
      run_reference(parts, {a.data(), b.data(), ea.data(), eb.data(), expected.data()}, chain);
  for (int i = 0; i < kIsaCount; ++i) {
    if (!all_isas()[i].usable) continue;
    const ContractionKernels& kernels = contraction_kernels(static_cast<Isa>(i));
    for (int threads : {1, 3, 4, 0}) {
      std::vector<float> c(t.c, missing);
      const Operands operands{a.data(), b.data(), ea.data(), eb.data(), c.data()};
      Counts saturated(1, 1), lengths(1, kChainLengths);
      Chains chains;
      chains.length = chain;
      // With mantissas of 16 bits, chains of 2 cannot overflow, except for -32768.
      chains.bounded = chain > 0 && (chain == 2 || chain <= longest_bounded(a, b));
      chains.saturated = &saturated;
      // Counts only sometimes: the bits must be the same without counting.
      if (chain == 0 && threads != 1) chains.lengths = &lengths;
      if (threads == 0) {
        StuckExecutor executor;
        run_plan(parts, operands, chains, kernels, executor);
      } else {
        TestExecutor executor(threads);
        run_plan(parts, operands, chains, kernels, executor);
      }
      int64_t bad = -1;
      for (int64_t j = 0; j < t.c && bad < 0; ++j)
        if (std::memcmp(&c[j], &expected[j], sizeof(float)) != 0 &&
            !(std::isnan(c[j]) && std::isnan(expected[j])))
          bad = j;
      int32_t count;
      saturated.write(&count);
      std::array<int32_t, kChainLengths> macs;
      lengths.write(macs.data());
      const std::array<int64_t, kChainLengths> none{};
      const auto& wanted_macs = chains.lengths != nullptr ? wanted.lengths : none;
      const bool same_macs = std::equal(macs.begin(), macs.end(), wanted_macs.begin());
      if (bad < 0 && count == wanted.saturated && same_macs) continue;
      char what[320];
      std::snprintf(what, sizeof what,
                    " data %d exponent %d chain %d isa %s threads %d: at %lld got %a, expected %a; "
                    "%d of %lld chains saturated; chain lengths %s",
                    static_cast<int>(kind), exponent, chain, all_isas()[i].name, threads,
                    static_cast<long long>(bad), bad < 0 ? 0 : c[bad], bad < 0 ? 0 : expected[bad],
                    count, static_cast<long long>(wanted.saturated),
                    same_macs ? "as expected" : "differ");
      fail(t.name + what);
    }
  }
}

Case in_grids(Case t, const Grid& grid_a, const Grid& grid_b, uint32_t spread) {
  t.grids = {grid_a, grid_b};
  const auto blocks = [](const Grid& grid, int64_t size) {
    return (size + grid.outer - 1) / grid.outer * grid.block_row_count() *
           grid.block_column_count();
  };
  t.exponents_a = blocks(grid_a, t.a);
  t.exponents_b = blocks(grid_b, t.b);
  t.spread = spread;
  t.name += ", spread " + std::to_string(spread);
  return t;
}

Case in_blocks(Case t, int64_t columns_a, int64_t columns_b, bool dithered, uint32_t spread) {
  t.name +=
      " in blocks of rows of " + std::to_string(columns_a) + " and " + std::to_string(columns_b);
  return in_grids(std::move(t), {columns_a * 9, columns_a, 4, 32, dithered},
                  {columns_b * 40, columns_b, 8, 16, true}, spread);
}

Case dot(int64_t G, int64_t M, int64_t N, int64_t K, bool ta, bool tb, bool tc, int64_t split) {
  Case t;
  t.name = "dot " + std::to_string(G) + "x" + std::to_string(M) + "x" + std::to_string(N) + "x" +
           std::to_string(K) + (ta ? " ta" : "") + (tb ? " tb" : "") + (tc ? " tc" : "") +
           " split " + std::to_string(split);
  t.parts = {{0,
              0,
              0,
              0,
              split,
              {dim(G, M * K, K * N, M * N)},
              {dim(M, ta ? 1 : K, 0, tc ? 1 : N)},
              {dim(N, 0, tb ? K : 1, tc ? M : 1)},
              {dim(K, ta ? M : 1, tb ? 1 : N, 0)},
              {}}};
  t.a = G * M * K;
  t.b = G * K * N;
  t.c = G * M * N;
  return t;
}

std::string Conv::name() const {
  return std::to_string(batch) + "x" + std::to_string(height) + "x" + std::to_string(width) + " " +
         std::to_string(in) + ">" + std::to_string(out) + " k" + std::to_string(kernel) + " s" +
         std::to_string(stride) + " p" + std::to_string(pad) + " d" + std::to_string(dilation);
}

Case fprop(const Conv& v, int64_t split) {
  const int64_t oh = v.out_height(), ow = v.out_width();
  Case t;
  t.name = "fprop " + v.name();
  t.parts = {{0,
              0,
              0,
              0,
              split,
              {},
              {dim(v.batch, v.height * v.width * v.in, 0, oh * ow * v.out),
               dim(oh, 0, 0, ow * v.out, 0, v.stride), dim(ow, 0, 0, v.out, 1, v.stride)},
              {dim(v.out, 0, 1, 1)},
              {dim(v.kernel, 0, v.kernel * v.in * v.out, 0, 0, v.dilation),
               dim(v.kernel, 0, v.in * v.out, 0, 1, v.dilation), dim(v.in, 1, v.out, 0)},
              {{v.height, v.width * v.in, -v.pad}, {v.width, v.in, -v.pad}}}};
  t.a = v.batch * v.height * v.width * v.in;
  t.b = v.kernel * v.kernel * v.in * v.out;
  t.c = v.batch * oh * ow * v.out;
  return t;
}

Case wgrad(const Conv& v, int64_t split) {
  const int64_t oh = v.out_height(), ow = v.out_width();
  Case t;
  t.name = "wgrad " + v.name();
  t.parts = {{0,
              0,
              0,
              0,
              split,
              {},
              {dim(v.kernel, 0, 0, v.kernel * v.in * v.out, 0, v.dilation),
               dim(v.kernel, 0, 0, v.in * v.out, 1, v.dilation), dim(v.in, 1, 0, v.out)},
              {dim(v.out, 0, 1, 1)},
              {dim(v.batch, v.height * v.width * v.in, oh * ow * v.out, 0),
               dim(oh, 0, ow * v.out, 0, 0, v.stride), dim(ow, 0, v.out, 0, 1, v.stride)},
              {{v.height, v.width * v.in, -v.pad}, {v.width, v.in, -v.pad}}}};
  t.a = v.batch * v.height * v.width * v.in;
  t.b = v.batch * oh * ow * v.out;
  t.c = v.kernel * v.kernel * v.in * v.out;
  return t;
}

Case dgrad(const Conv& v, int64_t split) {
  const int64_t oh = v.out_height(), ow = v.out_width();
  Case t;
  t.name = "dgrad " + v.name();
  t.parts = {{0,
              0,
              0,
              0,
              split,
              {},
              {dim(v.batch, oh * ow * v.out, 0, v.height * v.width * v.in),
               dim(v.height, 0, 0, v.width * v.in, 0, 1), dim(v.width, 0, 0, v.in, 1, 1)},
              {dim(v.in, 0, v.out, 1)},
              {dim(v.kernel, 0, v.kernel * v.in * v.out, 0, 0, -v.dilation),
               dim(v.kernel, 0, v.in * v.out, 0, 1, -v.dilation), dim(v.out, 1, 1, 0)},
              {{oh, ow * v.out, v.pad}, {ow, v.out, v.pad}}}};
  t.a = v.batch * oh * ow * v.out;
  t.b = v.kernel * v.kernel * v.in * v.out;
  t.c = v.batch * v.height * v.width * v.in;
  return t;
}

}  // namespace dfpjax
