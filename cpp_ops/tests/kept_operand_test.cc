// Tests calls that reuse what was prepared of B: which calls do, and that results are the
// reference's.
#include "contraction/kept_operand.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "plan/plan.h"
#include "tests/cases.h"
#include "tests/executor.h"
#include "tests/reference.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

// B and the reference's results.
struct Version {
  std::vector<int16_t> b;
  std::vector<int32_t> exponents;
  std::vector<float> expected;
};

class Calls {
 public:
  explicit Calls(const Case& t) : name_(t.name), size_c_(t.c) {
    const std::vector<int64_t> code = encode(t.parts, t.grids);
    const std::string error = decode_plan(code.data(), static_cast<int64_t>(code.size()),
                                          {t.a, t.b, t.c, t.exponents_a, t.exponents_b}, &parts_);
    expect(error.empty(), t.name + ": " + error);
    std::mt19937 random(1);
    const auto fill = [&random](auto* to, int64_t size, int from, unsigned range) {
      to->resize(static_cast<size_t>(size));
      for (auto& x : *to) x = static_cast<int16_t>(from + static_cast<int>(random() % range));
    };
    fill(&a_, t.a, -5000, 10001);
    fill(&ea_, t.exponents_a, -20, t.spread);
    fill(&first_.b, t.b, -5000, 10001);
    fill(&first_.exponents, t.exponents_b, -20, t.spread);
    if (!t.grids.empty()) first_.exponents.back() = 1 << 20;  // not finite
    refer(&first_);
  }

  const std::string& name() const { return name_; }
  const Version& first() const { return first_; }
  template <class Change>
  Version changed(Change change) const {
    Version version = first_;
    change(&version);
    refer(&version);
    expect(std::memcmp(version.expected.data(), first_.expected.data(),
                       version.expected.size() * sizeof(float)) != 0,
           name_ + ": the change makes a difference");
    return version;
  }

  // Whether the call reused what was kept.
  bool run(const Version& version, KeptOperand* site, const ContractionKernels& kernels,
           int threads, const Chains& chains = {}) const {
    std::vector<float> c(static_cast<size_t>(size_c_));
    TestExecutor executor(threads);
    OperandReuse reuse(site, version.b.data(), static_cast<int64_t>(version.b.size()),
                       version.exponents.data(), static_cast<int64_t>(version.exponents.size()));
    run_plan(parts_, operands(version, &c), chains, kernels, executor, &reuse);
    const bool same =
        std::equal(c.begin(), c.end(), version.expected.begin(), [](float x, float y) {
          return std::memcmp(&x, &y, sizeof x) == 0 || (std::isnan(x) && std::isnan(y));
        });
    expect(same, name_ + ": the results are the reference's");
    return reuse.found();
  }

 private:
  Operands operands(const Version& version, std::vector<float>* c) const {
    return {a_.data(), version.b.data(), ea_.data(), version.exponents.data(), c->data()};
  }
  void refer(Version* version) const {
    version->expected.resize(static_cast<size_t>(size_c_));
    run_reference(parts_, operands(*version, &version->expected), 0);
  }

  const std::string name_;
  const int64_t size_c_;
  std::vector<Part> parts_;
  std::vector<int16_t> a_;
  std::vector<int32_t> ea_;
  Version first_;
};

// 64 to 80 channels, whose kernels are in blocks.
Case winograd(bool forward, int64_t tile) {
  const Conv v{1, 6, 5, 64, 80, 3, 1, 1, 1};
  Case t = forward ? fprop(v, 1) : dgrad(v, 1);
  t.parts[0].mode = 2;
  t.parts[0].tile = tile;
  return in_blocks(t, forward ? v.in : v.out, v.out, false, 5);
}

// Without a Winograd algorithm, in several layouts of B.
std::vector<Case> direct() {
  std::vector<Case> cases;
  for (const bool transposed : {false, true}) {
    const auto add = [&](const Case& t, int64_t k, int64_t n, bool dithered) {
      cases.push_back(in_blocks(t, k, transposed ? k : n, dithered, 5));
    };
    add(dot(1, 20, 130, 300, false, transposed, false, 1), 300, 130, false);
    add(dot(1, 1, 130, 600, false, transposed, false, 1), 600, 130, false);
    add(dot(3, 7, 70, 290, false, transposed, false, 2), 290, 70, true);
  }
  for (const Conv& v : {Conv{1, 6, 5, 160, 210, 1, 1, 0, 1}, Conv{1, 6, 5, 64, 80, 3, 1, 1, 1}})
    for (const Case& conv : {fprop(v, 1), dgrad(v, 1)})
      cases.push_back(in_blocks(conv, 16, v.out, false, 5));
  return cases;
}

template <class Run>
void on_every_path(Run run) {
  for (int i = 0; i < kIsaCount; ++i)
    if (all_isas()[i].usable)
      for (const int threads : {1, 3}) run(contraction_kernels(static_cast<Isa>(i)), threads);
}

// A mantissa between the lines of the fingerprint, and an exponent.
Version other_mantissa(const Calls& calls) {
  return calls.changed([](Version* v) { v->b[33 * 7] += 9000; });
}
Version other_exponent(const Calls& calls) {
  return calls.changed([](Version* v) { ++v->exponents[0]; });
}

void check_sequence(const Calls& calls) {
  const Version& first = calls.first();
  const Version mantissa = other_mantissa(calls), exponent = other_exponent(calls);
  on_every_path([&](const ContractionKernels& kernels, int threads) {
    KeptOperand site;
    const auto call = [&](const Version& version, bool reuses, bool keeps, const char* which) {
      const std::string what = calls.name() + ", " + which;
      expect(calls.run(version, &site, kernels, threads) == reuses, what);
      expect((kept_operand_bytes() > 0) == keeps, what + ": kept bytes");
    };
    // Of so many calls the last one keeps, and another one reuses.
    const auto until_kept = [&](const Version& version, int64_t count, const char* which) {
      for (int64_t i = 1; i < count; ++i) call(version, false, false, which);
      call(version, false, true, which);
      call(version, true, true, which);
    };
    until_kept(first, kCallsUntilKept, "at first");
    for (int i = 0; i < 2; ++i) call(first, true, true, "later calls");
    call(mantissa, false, false, "another mantissa");
    // The fingerprint does not differ: the call that ran again counts as the first one with it.
    constexpr int64_t more = 2 * (kCallsUntilKept - 1) + 1;
    until_kept(first, more - 1, "back from another mantissa");
    call(exponent, false, false, "another exponent");
    call(first, false, false, "back from another exponent");
    until_kept(exponent, more, "the other exponent again");
    release_kept_operands();
    expect(kept_operand_bytes() == 0, "released");
    until_kept(exponent, more, "after the release");
  });
  expect(kept_operand_bytes() == 0, "sites that are gone keep nothing");
}

// B changes with each call, but its fingerprint does not.
void check_missed_changes(const Calls& calls) {
  const Version other = other_mantissa(calls);
  const ContractionKernels& kernels = contraction_kernels(Isa::kPortable);
  KeptOperand site;
  int repeated = 0;
  for (int i = 0; i < 60; ++i) {
    const bool kept = kept_operand_bytes() > 0;
    calls.run(i % 2 == 0 ? calls.first() : other, &site, kernels, 2);
    repeated += kept && kept_operand_bytes() == 0;
  }
  // Calls 9, 24 and 53.
  expect(repeated == 3, calls.name() + ": " + std::to_string(repeated) + " of 60 calls ran twice");
}

// As the weights of a recurrence do in training, if a step changes few of their mantissas.
void check_missed_changes_after_many_uses(const Calls& calls) {
  const Version other = other_mantissa(calls);
  const ContractionKernels& kernels = contraction_kernels(Isa::kPortable);
  KeptOperand site;
  for (int step = 0; step < 4; ++step) {
    int64_t reused = 0;
    for (int64_t i = 0; i < 3 * kCallsUntilKept; ++i)
      reused += calls.run(step % 2 == 0 ? calls.first() : other, &site, kernels, 2);
    expect(reused == 2 * kCallsUntilKept,
           calls.name() + ": " + std::to_string(reused) + " calls reused B");
  }
}

void check_threads(const Calls& calls) {
  const Version other = other_mantissa(calls);
  const ContractionKernels& kernels = contraction_kernels(Isa::kPortable);
  KeptOperand site;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      for (int j = 0; j < 36; ++j)
        calls.run(i > 0 && j / 12 == 1 ? other : calls.first(), &site, kernels, 2);
    });
  release_kept_operands();
  for (std::thread& thread : threads) thread.join();
}

void check_that_nothing_is_kept() {
  const auto check = [](const Case& t, bool with_site, const char* what) {
    const Calls calls(t);
    KeptOperand site;
    for (int64_t i = 0; i <= kCallsUntilKept; ++i)
      expect(!calls.run(calls.first(), with_site ? &site : nullptr,
                        contraction_kernels(Isa::kPortable), 2),
             what);
    expect(kept_operand_bytes() == 0, what);
  };
  const Case good = winograd(true, 2);
  check(good, false, "without a site");
  const auto dot_in_blocks = [](int64_t m, int64_t n, int64_t k) {
    return in_blocks(dot(1, m, n, k, false, false, false, 1), k, n, false, 5);
  };
  check(dot_in_blocks(1100, 100, 330), true, "many rows");
  check(dot_in_blocks(10, 64, 200), true, "a small B");
  check(dot(1, 10, 130, 300, false, false, false, 1), true, "one exponent");
  Counts lengths(1, kChainLengths);
  Chains counted;
  counted.lengths = &lengths;
  for (const Case& t : {good, direct().front()}) {
    const Calls calls(t);
    KeptOperand site;
    for (int64_t i = 0; i <= kCallsUntilKept; ++i)
      expect(!calls.run(calls.first(), &site, contraction_kernels(Isa::kPortable), 1, counted),
             t.name + ": counted chains");
  }
  Case several = good;
  several.parts.push_back(several.parts[0]);
  several.parts[1].base_c = several.c;
  several.c *= 2;
  check(several, true, "several parts");
  several = direct().front();
  several.parts.push_back(several.parts[0]);
  several.parts[1].base_c = several.c;
  several.c *= 2;
  check(several, true, "several direct parts");
}

void check_limit() {
  const KeptShare most(kKeptLimit - 10);
  expect(most.granted(), "a share of less than the limit");
  expect(!KeptShare(11).granted(), "more than the limit");
  expect(kept_operand_bytes() == kKeptLimit - 10, "what was refused does not count");
  for (const Case& t : {winograd(true, 2), direct().front()}) {
    const Calls calls(t);
    KeptOperand site;
    for (int64_t i = 0; i <= kCallsUntilKept; ++i)
      expect(!calls.run(calls.first(), &site, contraction_kernels(Isa::kPortable), 1),
             t.name + ": nothing beyond the limit");
  }
}

}  // namespace

void run_test(bool quick) {
  for (const int64_t tile : {2, 4})
    for (const bool forward : {true, false}) {
      const Calls calls(winograd(forward, tile));
      if (!quick || forward == (tile == 2)) check_sequence(calls);
      check_missed_changes(calls);
      check_missed_changes_after_many_uses(calls);
      check_threads(calls);
    }
  const std::vector<Case> cases = direct();
  for (size_t i = 0; i < cases.size(); i += quick ? 3 : 1) {
    const Calls calls(cases[i]);
    check_sequence(calls);
    check_missed_changes(calls);
    check_missed_changes_after_many_uses(calls);
    check_threads(calls);
  }
  check_that_nothing_is_kept();
  check_limit();
}

}  // namespace dfpjax
