#include "runtime/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

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

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t count_units(const Loop& loop) {
  const int64_t grain = std::max<int64_t>(loop.grain, 1);
  return (loop.count + grain - 1) / grain;
}

// The units of a stage that one worker begins with. Other workers take from them when they have
// nothing left to do.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Progress {
  Progress(const Stage& stage, int workers) : shares(static_cast<size_t>(workers)) {
    // In units of the grain of a loop, so shares end where ranges end.
    int64_t units = 0;
    for (const Loop& loop : stage) {
      grains.push_back(std::max<int64_t>(loop.grain, 1));
      units += count_units(loop);
      ends.push_back(units);
    }
    for (int w = 0; w < workers; ++w) {
      shares[static_cast<size_t>(w)].next.store(units * w / workers, std::memory_order_relaxed);
      shares[static_cast<size_t>(w)].end = units * (w + 1) / workers;
    }
    left.store(units, std::memory_order_relaxed);
  }

  std::vector<int64_t> grains, ends;
  std::deque<Share> shares;
  std::atomic<int64_t> left;  // units that are not complete
};

class Team {
 public:
  Team(const std::vector<Stage>& stages, int workers) : stages_(stages), workers_(workers) {
    for (const Stage& stage : stages) progress_.emplace_back(stage, workers);
  }

  // Works as long as there is something to do. For the caller, returns when all stages are
  // complete; until then `stages` must stay alive.
  void work(bool caller) noexcept {
    const int worker = arrived_.fetch_add(1, std::memory_order_relaxed);
    DefaultFloatMode mode;
    for (size_t i = 0; i < progress_.size(); ++i) {
      Progress& p = progress_[i];
      for (int s = 0; s < workers_; ++s) {
        Share& share = p.shares[static_cast<size_t>((worker + s) % workers_)];
        for (;;) {
          const int64_t unit = share.next.fetch_add(1, std::memory_order_relaxed);
          if (unit >= share.end) break;
          run(i, unit, worker);
          if (p.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            std::lock_guard<std::mutex> lock(mutex_);
            complete_.notify_all();
          }
        }
      }
      if (caller || i + 1 < progress_.size()) wait(p);
    }
  }

  // Call this after work(true).
  void throw_failure() const {
    if (failure_ != nullptr) std::rethrow_exception(failure_);
  }

 private:
  void fail(std::exception_ptr exception) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_ == nullptr) failure_ = std::move(exception);
    failed_.store(true, std::memory_order_relaxed);
  }

  void run(size_t stage, int64_t unit, int worker) {
    if (failed_.load(std::memory_order_relaxed)) return;  // later ranges may lack their inputs
    const Progress& p = progress_[stage];
    const size_t at =
        static_cast<size_t>(std::upper_bound(p.ends.begin(), p.ends.end(), unit) - p.ends.begin());
    const Loop& loop = stages_[stage][at];
    const int64_t low = (unit - (at > 0 ? p.ends[at - 1] : 0)) * p.grains[at];
    try {
      loop.body(worker, low, std::min(low + p.grains[at], loop.count));
    } catch (...) {
      fail(std::current_exception());
    }
  }

  // Ranges that others have begun end soon, so spinning for a moment costs less than sleeping at
  // once.
  void wait(const Progress& p) {
    constexpr int kSpins = 4000;
    const auto complete = [&p] { return p.left.load(std::memory_order_acquire) == 0; };
    for (int i = 0; i < kSpins; ++i, pause())
      if (complete()) return;
    std::unique_lock<std::mutex> lock(mutex_);
    complete_.wait(lock, complete);
  }

  const std::vector<Stage>& stages_;
  const int workers_;
  std::deque<Progress> progress_;
  std::atomic<int> arrived_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
  std::mutex mutex_;
  std::condition_variable complete_;
};

}  // namespace

void run_stages(Executor& executor, const std::vector<Stage>& stages) {
  int64_t most = 0;
  for (const Stage& stage : stages) {
    int64_t units = 0;
    for (const Loop& loop : stage) units += count_units(loop);
    most = std::max(most, units);
  }
  const int workers = static_cast<int>(std::min<int64_t>(executor.threads(), most));
  if (workers == 0) return;
  // Late helpers still read the team, so they share its ownership.
  const auto team = std::make_shared<Team>(stages, workers);
  try {
    for (int i = 1; i < workers; ++i) executor.schedule([team] { team->work(false); });
  } catch (...) {
    // Scheduled helpers already use `stages`, so the caller has to stay. It does the work of the
    // missing helpers.
  }
  team->work(true);
  team->throw_failure();
}

}  // namespace dfpjax
