// Runs every path that this CPU supports against the scalar reference, bit by bit.
#include "contraction/contract.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "contraction/blocking.h"
#include "contraction/kernels/table.h"
#include "plan/plan.h"
#include "runtime/scratch.h"
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

struct PartCode {
  int64_t mode, base_a, base_b, base_c, blocks_per_split;
  std::vector<Dim> g, m, n, k;
  std::vector<Window> windows;
};

std::vector<int64_t> encode(const std::vector<PartCode>& parts,
                            const std::vector<Grid>& grids = {}) {
  std::vector<int64_t> code;
  const auto put = [&](std::initializer_list<int64_t> values) { code.insert(code.end(), values); };
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.size()); };
  put({2, size(grids)});
  for (const Grid& grid : grids)
    put({grid.outer, grid.columns, grid.block_rows, grid.block_columns, grid.dithered});
  put({size(parts)});
  for (const PartCode& p : parts) {
    put({p.mode, p.base_a, p.base_b, p.base_c, p.blocks_per_split});
    put({size(p.g), size(p.m), size(p.n), size(p.k), size(p.windows)});
    for (const auto* dims : {&p.g, &p.m, &p.n, &p.k})
      for (const Dim& d : *dims)
        put({d.extent, d.stride_a, d.stride_b, d.stride_c, d.exp_a, d.exp_b, d.window, d.coef});
    for (const Window& w : p.windows) put({w.size, w.stride_a, w.offset});
  }
  return code;
}

Dim dim(int64_t extent, int64_t a, int64_t b, int64_t c, int window = -1, int64_t coef = 0) {
  return {extent, a, b, c, 0, 0, window, coef};
}

enum class Data { kNormal, kSmall, kFull, kOutliers, kMedium, kLowest };
constexpr Data kAllData[] = {Data::kNormal, Data::kMedium,   Data::kSmall,
                             Data::kFull,   Data::kOutliers, Data::kLowest};

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

struct Case {
  std::string name;
  std::vector<PartCode> parts;
  int64_t a, b, c;  // buffer sizes
  int64_t exponents_a = 1, exponents_b = 1;
  std::vector<Grid> grids = {};  // of A and B, if they are in blocks
  uint32_t spread = 5;           // of the exponents
};

void check(const Case& t, Data kind, int32_t exponent, std::mt19937* random, int chain = 0) {
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
  if (t.spread > 20)  // a few are not finite
    for (auto* exponents : {&ea, &eb})
      for (int32_t& e : *exponents)
        if ((*random)() % 300 == 0) e = 1 << 20;
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

// The same with operands in blocks, whose rows have these numbers of columns.
Case in_blocks(Case t, int64_t columns_a, int64_t columns_b, bool dithered, uint32_t spread) {
  t.name += " in blocks of rows of " + std::to_string(columns_a) + " and " +
            std::to_string(columns_b) + ", spread " + std::to_string(spread);
  t.grids = {{columns_a * 9, columns_a, 4, 32, dithered}, {columns_b * 40, columns_b, 8, 16, true}};
  const auto blocks = [](const Grid& grid, int64_t size) {
    return (size + grid.outer - 1) / grid.outer * grid.block_row_count() *
           grid.block_column_count();
  };
  t.exponents_a = blocks(t.grids[0], t.a);
  t.exponents_b = blocks(t.grids[1], t.b);
  t.spread = spread;
  return t;
}

// C[g,m,n] = A[g,m,k] B[g,k,n]; `ta` and `tb` store the operands transposed, `tc` the result.
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

struct Conv {
  int64_t batch, height, width, in, out, kernel, stride, pad, dilation;
  int64_t out_height() const {
    return (height + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  }
  int64_t out_width() const { return (width + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; }
  std::string name() const {
    return std::to_string(batch) + "x" + std::to_string(height) + "x" + std::to_string(width) +
           " " + std::to_string(in) + ">" + std::to_string(out) + " k" + std::to_string(kernel) +
           " s" + std::to_string(stride) + " p" + std::to_string(pad) + " d" +
           std::to_string(dilation);
  }
};

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

// The stride-1 input gradient.
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

Case depthwise(const Conv& v, int64_t split) {
  Case t =
      fprop({v.batch, v.height, v.width, v.in, 1, v.kernel, v.stride, v.pad, v.dilation}, split);
  t.name = "depthwise " + v.name();
  PartCode& p = t.parts[0];
  p.mode = 1;
  p.g = {dim(v.in, 1, 1, 1)};
  p.n = {};
  p.k.pop_back();
  for (Dim& d : p.k) d.stride_b = d.stride_b;
  for (Dim& d : p.m) d.stride_c *= v.in;
  t.c *= v.in;
  return t;
}

Case with_exponents(Case t) {
  PartCode& p = t.parts[0];
  t.name += " per-row and per-column exponents";
  p.m.back().exp_a = 1;
  p.n.back().exp_b = 1;
  t.exponents_a = p.m.back().extent;
  t.exponents_b = p.n.back().extent;
  return t;
}

Case with_lane_exponents(Case t) {
  PartCode& p = t.parts[0];
  t.name += " per-lane exponents";
  p.g.back().exp_a = p.g.back().exp_b = 1;
  t.exponents_a = t.exponents_b = p.g.back().extent;
  return t;
}

void check_rejected(const std::string& name, const std::vector<int64_t>& code,
                    const std::string& part_of_message) {
  std::vector<Part> parts;
  const std::string error =
      decode_plan(code.data(), static_cast<int64_t>(code.size()), {100, 100, 100, 1, 1}, &parts);
  expect(error.find(part_of_message) != std::string::npos, name + ": got message '" + error + "'");
}

void check_validation() {
  const PartCode good = dot(1, 10, 10, 10, false, false, false, 1).parts[0];
  check_rejected("empty", {}, "truncated");
  check_rejected("version", {1, 0}, "version");
  check_rejected("good", encode({good}), "");
  std::vector<int64_t> code = encode({good});
  for (size_t size = 0; size < code.size(); ++size)
    check_rejected("cut", {code.begin(), code.begin() + static_cast<int64_t>(size)}, "truncated");
  code.push_back(0);
  check_rejected("trailing", code, "trailing");
  PartCode p = good;
  p.base_a = 1;
  check_rejected("base_a", encode({p}), "a:");
  p = good;
  p.base_a = -1;
  check_rejected("negative base_a", encode({p}), "a:");
  p = good;
  p.n[0].stride_b = -1;
  check_rejected("stride_b", encode({p}), "b:");
  p = good;
  p.m[0].stride_c = 11;
  check_rejected("stride_c", encode({p}), "c:");
  p = good;
  p.m[0].exp_a = 1;
  check_rejected("exp_a", encode({p}), "ea:");
  p = good;
  p.k[0].stride_a = std::numeric_limits<int64_t>::max();
  check_rejected("overflow", encode({p}), "a:");
  p = good;
  p.m[0].extent = int64_t{1} << 39;
  p.m[0].stride_a = p.m[0].stride_c = 0;
  check_rejected("too many outputs", encode({p}), "c:");
  p = good;
  p.blocks_per_split = 0;
  check_rejected("blocks_per_split", encode({p}), "blocks_per_split");
  p = good;
  p.m[0].window = 0;
  check_rejected("window", encode({p}), "window");
  p = good;
  p.m[0].extent = 9;
  check_rejected("too few outputs", encode({p}), "c:");
  check_rejected("no parts", encode({}), "c:");
  p = good;
  p.m[0].stride_b = 1;
  check_rejected("M moves B", encode({p}), "M moves B");
  p = good;
  p.m[0].exp_b = 1;
  check_rejected("M moves B's exponent", encode({p}), "M moves B");
  p = good;
  p.n[0].exp_a = 1;
  check_rejected("N moves A's exponent", encode({p}), "N moves A");
  p = good;
  p.k[0].exp_a = 1;
  check_rejected("K moves an exponent", encode({p}), "K moves");
  p = good;
  p.k[0] = dim(int64_t{1} << 40, 0, 0, 0);
  check_rejected("a long K", encode({p}), "");
  p.g = {dim(int64_t{1} << 40, 0, 0, 0)};
  check_rejected("products that overflow", encode({p}), "c:");
  p = good;
  p.m[0] = dim(10, 0, 0, 10, 0, -((int64_t{1} << 30) / 9));
  p.k[0] = dim(10, 0, 10, 0, 0, (int64_t{1} << 31) / 9);
  p.windows = {{5, 0, -(int64_t{1} << 28)}};
  check_rejected("coordinates that overflow", encode({p}), "coordinate");
  check_rejected("outputs twice", encode({good, good}), "c:");
}

void check_alignments() {
  const char* const names[] = {"a:", "b:", "c:", "ea:", "eb:"};
  alignas(8) static const char memory[16] = {};
  for (int bad = 0; bad < 6; ++bad) {  // the last one misaligns nothing
    const auto at = [&](int i) { return static_cast<const void*>(memory + 4 + (i == bad)); };
    const std::string error =
        check_alignment(static_cast<const int16_t*>(at(0)), static_cast<const int16_t*>(at(1)),
                        static_cast<const float*>(at(2)), static_cast<const int32_t*>(at(3)),
                        static_cast<const int32_t*>(at(4)));
    expect(bad < 5 ? error.rfind(names[bad], 0) == 0 : error.empty(), "alignment: " + error);
  }
}

// Checks the counts for two examples of two groups each.
void check_counts() {
  const Case t = dot(4, 1, 1, 1, false, false, false, 1);
  const std::vector<int64_t> code = encode(t.parts);
  std::vector<Part> parts;
  decode_plan(code.data(), static_cast<int64_t>(code.size()), {t.a, t.b, t.c, 1, 1}, &parts);
  constexpr int64_t kMany = int64_t{3} << 40;
  Counts counts(2, 3);
  counts.add(parts[0], 0, 0, 1);
  counts.add(parts[0], 1, 0, kMany - 1);
  counts.add(parts[0], 1, 2, kMany / 3);
  std::array<int32_t, 6> written;
  std::array<float, 6> shares;
  counts.write(written.data());
  counts.write_shares(shares.data());
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  const bool ok = written == std::array<int32_t, 6>{kMost, 0, kMost, 0, 0, 0} &&
                  shares == std::array<float, 6>{0.75f, 0, 0.25f, 0, 0, 0} && counts.fits(parts) &&
                  !Counts(3, 1).fits(parts) && !Counts(0, 1).fits(parts);
  expect(ok, "counts of examples");
}

// Checks that tasks cover the whole part, and that the cases below take every way to cut one.
void check_blockings() {
  for (const Source source : {Source::kInPlace, Source::kAlongK, Source::kAlongM})
    for (const int64_t tiles : {1, 2, 17, 43, 1046})
      for (const int64_t panels : {1, 3, 32, 1000})
        for (const int64_t k : {1, 64, 600, 100000})
          for (const int threads : {1, 3, 64}) {
            const Blocking b = choose_blocking({2, tiles, panels, k, source, false}, threads);
            expect(1 <= b.row_blocks && b.row_blocks <= tiles, "row blocks");
            expect(1 <= b.panel_ranges && b.panel_ranges <= panels, "panel ranges");
            expect(!b.share_a, "A is shared though it must not be");
          }
  expect(choose_blocking({1, 34, 10, 300, Source::kAlongM, true}, 4).share_a, "A is not shared");
  expect(choose_blocking({1, 17, 2, 2600, Source::kInPlace, false}, 4).share_b, "B is not shared");
  const Blocking large = choose_blocking({1, 200, 4, 22'500'000, Source::kAlongK, true}, 4);
  expect(!large.share_a && !large.share_b, "gigabytes are shared");
}

}  // namespace

void run_test(bool quick) {
  std::mt19937 random(1);
  check_validation();
  check_alignments();
  check_counts();
  check_blockings();

  std::vector<Case> cases;
  // Every remainder of rows and columns, odd k, all layouts.
  for (int64_t m = 1; m <= 13; ++m)
    cases.push_back(dot(1, m, 17 + m, 33, m % 2, m % 3 == 0, false, 1));
  for (int64_t n : {1, 15, 16, 31, 48, 63, 64, 65, 80, 112, 129}) {
    cases.push_back(dot(1, 7, n, 70, false, n % 2, false, 9));
    cases.push_back(dot(1, 8, n, 71, true, n % 2 == 0, n % 3 == 0, 9));
  }
  for (int64_t k : {1, 2, 3, 31, 32, 33, 64, 127, 255, 256, 257, 511, 513, 1025, 2600}) {
    cases.push_back(dot(1, 13, 20, k, false, false, false, 2));
    cases.push_back(dot(1, 20, 13, k, true, true, true, 1));
  }
  cases.push_back(dot(7, 9, 11, 40, false, false, false, 1));
  cases.push_back(dot(70, 5, 3, 6, false, true, false, 1));
  cases.push_back(dot(2, 150, 140, 300, false, false, false, 1));
  cases.push_back(dot(1, 640, 32, 300, true, false, false, 1));
  cases.push_back(dot(1, 100, 70, 2600, false, false, false, 11));  // several groups of k-blocks
  cases.push_back(dot(1, 200, 640, 300, true, false, false, 2));    // a shared A
  cases.push_back(dot(1, 10, 12, 0, false, false, false, 1));
  cases.push_back(dot(3, 0, 12, 5, false, false, false, 1));
  cases.push_back(with_exponents(dot(1, 14, 70, 300, false, false, false, 1)));
  cases.push_back(with_exponents(dot(1, 14, 70, 600, false, false, true, 1)));
  cases.push_back(with_exponents(dot(1, 14, 70, 0, false, false, false, 1)));
  for (const Conv& v : {Conv{2, 7, 6, 16, 20, 3, 1, 1, 1}, Conv{1, 9, 9, 3, 8, 5, 2, 2, 1},
                        Conv{2, 8, 5, 5, 7, 3, 1, 2, 2}, Conv{1, 11, 10, 3, 16, 7, 2, 3, 1},
                        Conv{1, 6, 6, 40, 66, 3, 1, 1, 1}, Conv{3, 4, 4, 64, 64, 1, 1, 0, 1},
                        Conv{1, 3, 3, 2, 2, 3, 1, 4, 1}}) {
    cases.push_back(fprop(v, 2));
    cases.push_back(wgrad(v, 1));
    if (v.stride == 1) cases.push_back(dgrad(v, 3));
  }
  for (int64_t c : {1, 5, 16, 40, 300}) cases.push_back(depthwise({2, 6, 5, c, c, 3, 1, 1, 1}, 1));
  cases.push_back(depthwise({1, 30, 30, 7, 7, 25, 1, 0, 1}, 1));  // several blocks and splits
  cases.push_back(depthwise({1, 30, 30, 7, 7, 25, 1, 0, 1}, 9));
  cases.push_back(with_lane_exponents(depthwise({2, 6, 5, 300, 300, 3, 1, 1, 1}, 1)));
  cases.push_back(with_lane_exponents(depthwise({1, 30, 30, 7, 7, 25, 1, 0, 1}, 1)));

  // In blocks: rows that are those of the operands, and rows that are not.
  const size_t count = cases.size();
  for (size_t i = 0; i < count; ++i) {
    if (cases[i].exponents_a + cases[i].exponents_b > 2) continue;
    const auto rows_of = [](const std::vector<Dim>& dims, int64_t Dim::* stride) {
      int64_t columns = 40;
      for (const Dim& d : dims)
        if (d.*stride == 1 && d.extent > 1) columns = d.extent;
      return columns;
    };
    const PartCode& p = cases[i].parts[0];
    std::vector<Dim> dims = p.k;
    for (const auto* more : {&p.g, &p.m, &p.n}) dims.insert(dims.end(), more->begin(), more->end());
    const bool odd = i % 3 == 0;
    cases.push_back(in_blocks(cases[i], odd ? 37 : rows_of(dims, &Dim::stride_a),
                              odd ? 50 : rows_of(dims, &Dim::stride_b), i % 2 == 0,
                              i % 4 < 2 ? 5 : 60));
  }

  // Depthwise: columns that are the lanes, a row of pixels, or neither; the last raises units.
  for (const Conv& v : {Conv{2, 6, 5, 70, 70, 3, 2, 1, 1}, Conv{1, 22, 21, 12, 12, 20, 1, 9, 1}})
    for (int64_t columns : {v.in, v.in * v.width, int64_t{37}}) {
      cases.push_back(in_blocks(depthwise(v, 1), columns, v.in, columns % 2 == 0, 60));
      cases.push_back(in_blocks(depthwise(v, 2), columns, 37, columns % 2 == 0, 300));
    }

  if (quick) {  // every way to cut a part, on each path
    for (size_t i = 0; i < cases.size(); i += 3)
      check(cases[i], kAllData[i / 3 % std::size(kAllData)], 3, &random);
    return;
  }
  for (const Case& t : cases)
    for (Data kind : kAllData) check(t, kind, 3, &random);
  // Chains of a given length: all lengths in turn on each kind of data.
  int chain = 2;
  for (const Case& t : cases)
    for (Data kind : kAllData) {
      check(t, kind, 3, &random, chain);
      chain = chain == kBlock ? 2 : 2 * chain;
    }
  // Outputs that bypass the caches.
  for (int64_t k : {0, 8})
    check(dot(1, 70000, 64, k, false, false, false, 1), Data::kMedium, 3, &random);
  // Scales outside of the range of normal numbers, or of all float32 numbers.
  for (int32_t e : {-190, -150, -130, -120, -110, 60, 90, 120, 300, 1 << 20})
    for (const Case& t :
         {dot(1, 9, 20, 300, false, false, false, 1), dot(1, 9, 20, 300, false, false, false, 2),
          dot(1, 9, 20, 0, false, false, false, 1), depthwise({2, 6, 5, 20, 20, 3, 1, 1, 1}, 1),
          with_exponents(dot(1, 14, 70, 300, false, false, false, 1)),
          with_lane_exponents(depthwise({2, 6, 5, 20, 20, 3, 1, 1, 1}, 1)),
          in_blocks(depthwise({2, 6, 5, 20, 20, 3, 1, 1, 1}, 1), 20, 20, false, 60)})
      check(t, Data::kSmall, e, &random);
}

}  // namespace dfpjax
