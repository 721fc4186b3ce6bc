#include "passes/local_response.h"

#include <algorithm>
#include <vector>

namespace dfpjax {
namespace {

// Calls work(first row, rows, memory) for blocks of rows. `memory` has the size that the kernels
// need and is zero.
template <class Work>
void run_rows(const Response& response, int64_t rows, int64_t channels, Executor& executor,
              Work work) {
  constexpr int64_t kNumbers = int64_t{1} << 15;  // a unit of work
  const int64_t block = std::max<int64_t>(kNumbers / std::max<int64_t>(channels, 1), 1);
  const Loop loop{(rows + block - 1) / block, 1, [&](int, int64_t begin, int64_t end) {
                    const int64_t size = kResponseRows * response_row(channels, response.reach);
                    std::vector<float> memory(static_cast<size_t>(size));
                    const int64_t first = begin * block;
                    work(first, std::min(end * block, rows) - first, memory.data());
                  }};
  run_stages(executor, {{loop}});
}

}  // namespace

void local_response(const Response& response, int64_t rows, int64_t channels, const float* x,
                    float* out, const PassKernels& kernels, Executor& executor) {
  run_rows(response, rows, channels, executor, [&](int64_t first, int64_t count, float* memory) {
    kernels.local_response(response, x + first * channels, count, channels, memory,
                           out + first * channels);
  });
}

void local_response_gradient(const Response& response, int64_t rows, int64_t channels,
                             const float* g, const float* x, float* out, const PassKernels& kernels,
                             Executor& executor) {
  run_rows(response, rows, channels, executor, [&](int64_t first, int64_t count, float* memory) {
    const int64_t at = first * channels;
    kernels.local_response_gradient(response, g + at, x + at, count, channels, memory, out + at);
  });
}

}  // namespace dfpjax
