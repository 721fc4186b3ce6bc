// Parallel loops on somebody else's thread pool.
#ifndef DFPJAX_PARALLEL_H_
#define DFPJAX_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace dfpjax {

// Where helpers run. `schedule` may run the task at any time, on any thread, even inline.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int threads() const = 0;  // that may work at the same time, the caller included
  virtual void schedule(std::function<void()> task) = 0;
};

// Calls body(low, high) for disjoint ranges that cover [0, count), of about `grain` indices each.
//
// The calling thread works too, and waits only for ranges that another thread has begun: handlers
// that occupy all workers of a pool never wait for a helper that the pool cannot start. Floating
// point is in its default mode (no flush to zero) inside `body`. Returns false if `body` threw.
bool parallel_for(Executor& executor, int64_t count, int64_t grain,
                  const std::function<void(int64_t, int64_t)>& body);

}  // namespace dfpjax

#endif  // DFPJAX_PARALLEL_H_
