// Parallel loops on the thread pool of the caller.
#ifndef DFPJAX_RUNTIME_PARALLEL_H_
#define DFPJAX_RUNTIME_PARALLEL_H_

#include <cstdint>
#include <functional>
#include <vector>

namespace dfpjax {

// Where helpers run. `schedule` may run the task at any time, on any thread, even inline. If it
// throws, the work is done with fewer helpers.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int threads() const = 0;  // that may work at the same time, including the caller
  virtual void schedule(std::function<void()> task) = 0;
};

// A loop over [0, count). Workers call body(worker, low, high), worker < Executor::threads(), for
// disjoint ranges of up to `grain` indices; neighbouring ranges mostly go to the same worker.
struct Loop {
  int64_t count;
  int64_t grain;
  std::function<void(int worker, int64_t low, int64_t high)> body;
};

// Loops that do not depend on each other.
using Stage = std::vector<Loop>;

// Runs the stages one after the other, each when the previous one is complete.
//
// The calling thread works too. Workers wait only for ranges that another worker has begun, so
// handlers that occupy all threads of a pool never wait for a helper that the pool cannot start.
// Floating point is in its default mode (no flush to zero) inside bodies. If a body throws, ranges
// that have not begun are skipped, and run_stages rethrows the first exception.
void run_stages(Executor& executor, const std::vector<Stage>& stages);

}  // namespace dfpjax

#endif  // DFPJAX_RUNTIME_PARALLEL_H_
