#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dfpjax {
namespace {

// Results include subnormal numbers, but XLA runs its threads with flush-to-zero.
class DefaultFloatMode {
 public:
#if defined(__x86_64__)
  DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~DefaultFloatMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

struct Loop {
  Loop(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>* body)
      : count(count), grain(grain), body(body) {}

  // Takes ranges until none is left. `body` is alive as long as there is one.
  void work() {
    DefaultFloatMode mode;
    int64_t finished = 0;
    for (;;) {
      const int64_t low = next.fetch_add(grain, std::memory_order_relaxed);
      if (low >= count) break;
      const int64_t high = std::min(low + grain, count);
      try {
        (*body)(low, high);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
      }
      finished += high - low;
    }
    if (finished == 0) return;
    if (done.fetch_add(finished, std::memory_order_acq_rel) + finished == count) {
      std::lock_guard<std::mutex> lock(mutex);
      all_done.notify_one();
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    all_done.wait(lock, [this] { return done.load(std::memory_order_acquire) == count; });
  }

  const int64_t count, grain;
  const std::function<void(int64_t, int64_t)>* const body;
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::condition_variable all_done;
};

}  // namespace

bool parallel_for(Executor& executor, int64_t count, int64_t grain,
                  const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return true;
  grain = std::max<int64_t>(grain, 1);
  // Helpers that come late still look at the loop, so they share it.
  auto loop = std::make_shared<Loop>(count, grain, &body);
  const int64_t ranges = (count + grain - 1) / grain;
  const int64_t helpers = std::min<int64_t>(executor.threads(), ranges) - 1;
  for (int64_t i = 0; i < helpers; ++i) executor.schedule([loop] { loop->work(); });
  loop->work();
  loop->wait();
  return !loop->failed.load(std::memory_order_relaxed);
}

}  // namespace dfpjax
