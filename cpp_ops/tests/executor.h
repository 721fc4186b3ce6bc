// Threads for the tests.
#ifndef DFPJAX_TESTS_EXECUTOR_H_
#define DFPJAX_TESTS_EXECUTOR_H_

#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/parallel.h"

namespace dfpjax {

// Makes a thread for each task. A pool would hide tasks that run late.
class TestExecutor : public Executor {
 public:
  explicit TestExecutor(int threads) : threads_(threads) {}
  ~TestExecutor() override {
    for (std::thread& t : started_) t.join();
  }
  int threads() const override { return threads_; }
  void schedule(std::function<void()> task) override { started_.emplace_back(std::move(task)); }

 private:
  int threads_;
  std::vector<std::thread> started_;
};

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_EXECUTOR_H_
