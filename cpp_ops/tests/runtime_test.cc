// Tests stages of loops that fail or get fewer helpers than they request, and the cache of scratch
// memory.
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/failure.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"
#include "tests/executor.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

// Schedules `most` tasks, which begin late, and throws at the next.
class FailingExecutor : public Executor {
 public:
  explicit FailingExecutor(int most) : most_(most) {}
  ~FailingExecutor() override {
    for (std::thread& t : started_) t.join();
  }
  int threads() const override { return 4; }
  void schedule(std::function<void()> task) override {
    if (static_cast<int>(started_.size()) == most_) throw std::bad_alloc();
    started_.emplace_back([task = std::move(task)] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      task();
    });
  }

 private:
  int most_;
  std::vector<std::thread> started_;
};

void check_failing_executor() {
  for (const int most : {0, 1, 2}) {
    std::array<std::atomic<int>, 100> visits{};
    FailingExecutor executor(most);  // it outlives the stages, as XLA's pool does
    {
      // Stages are on the heap, where the address sanitizer sees accesses of a late helper.
      const auto body = [&](int, int64_t low, int64_t high) {
        for (int64_t i = low; i < high; ++i) ++visits[static_cast<size_t>(i)];
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      };
      const std::vector<Stage> stages{{Loop{60, 1, body}}, {Loop{100, 1, body}}};
      run_stages(executor, stages);
    }
    bool right = true;
    for (size_t i = 0; i < visits.size(); ++i) right &= visits[i] == (i < 60 ? 2 : 1);
    expect(right, "work with " + std::to_string(most) + " of 3 helpers");
  }
}

// The message of the exception that run_stages throws if a body throws `thrown`.
template <class Exception>
std::string message_after(const Exception& thrown, int threads) {
  TestExecutor executor(threads);
  std::atomic<int> later{0};
  const Loop failing{40, 1, [&](int, int64_t low, int64_t) {
                       if (low == 20) throw thrown;
                     }};
  const Loop next{40, 1, [&](int, int64_t, int64_t) { ++later; }};
  try {
    run_stages(executor, {{failing}, {next}});
  } catch (...) {
    expect(later == 0, "stages after one that failed are skipped");
    const Failure failure = describe(std::current_exception());
    return std::to_string(static_cast<int>(failure.kind)) + failure.message;
  }
  return "nothing";
}

void check_exceptions() {
  for (const int threads : {1, 4}) {
    const auto expect_message = [](const std::string& got, const std::string& wanted) {
      expect(got == wanted, "got '" + got + "', expected '" + wanted + "'");
    };
    expect_message(message_after(std::bad_alloc(), threads), "0out of memory");
    expect_message(message_after(OutOfScratch(3 << 20), threads),
                   "0out of memory: cannot allocate 3 MiB of scratch space");
    expect_message(message_after(std::invalid_argument("windows: bad"), threads), "1windows: bad");
    expect_message(message_after(std::length_error("too long"), threads), "2too long");
    expect_message(message_after(7, threads), "2an exception of unknown type");
  }
}

bool throws_out_of_scratch(std::initializer_list<int64_t> extents) {
  try {
    Scratch::array<float>(extents);
  } catch (const OutOfScratch&) {
    return true;
  }
  return false;
}

void check_scratch() {
  constexpr int64_t kMiB = 1 << 20;
  release_scratch();
  {
    const Scratch small(8 * kMiB), other(24 * kMiB);
  }
  expect(scratch_bytes() == 32 * kMiB, "blocks are kept");
  {
    const Scratch large(static_cast<int64_t>(kScratchLimit) + 1);
  }
  expect(scratch_bytes() == 32 * kMiB, "a block larger than the cache drives none out");
  {
    const Scratch large(static_cast<int64_t>(kLargestKept) + 1);
  }
  expect(scratch_bytes() == 32 * kMiB, "a block of more than half the cache drives none out");
  {
    const Scratch large(static_cast<int64_t>(kLargestKept));
  }
  expect(scratch_bytes() == 32 * kMiB + kLargestKept, "a block of half the cache is kept");
  {
    const Scratch first(200 * kMiB), second(200 * kMiB), third(200 * kMiB);
  }
  expect(scratch_bytes() <= kScratchLimit, "the limit holds");
  release_scratch();
  expect(scratch_bytes() == 0, "the cache is empty");

  constexpr int64_t kHuge = int64_t{1} << 31;
  expect(throws_out_of_scratch({kHuge, kHuge, 2}), "a size of 2^65 bytes");
  expect(throws_out_of_scratch({kHuge, kHuge, kHuge, kHuge}), "a size of 2^126 bytes");
  expect(throws_out_of_scratch({kHuge, kHuge >> 4}), "a size of 2^60 bytes");
  expect(!throws_out_of_scratch({kHuge, 0, kHuge}), "no bytes");
}

}  // namespace

void run_test(bool) {
  check_failing_executor();
  check_exceptions();
  check_scratch();
}

}  // namespace dfpjax
