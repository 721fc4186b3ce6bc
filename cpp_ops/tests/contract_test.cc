// Runs every path that this CPU supports against the scalar reference, bit by bit.
#include "contraction/contract.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "contraction/blocking.h"
#include "plan/plan.h"
#include "tests/cases.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

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
  expect(!choose_blocking({1, 17, 2, 2600, Source::kInPlace, false, true}, 4).share_b,
         "B is packed again");
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
