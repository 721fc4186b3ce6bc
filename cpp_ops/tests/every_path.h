// Shared by the tests of passes: runs a pass on every path that this CPU supports, and compares its
// results.
#ifndef DFPJAX_TESTS_EVERY_PATH_H_
#define DFPJAX_TESTS_EVERY_PATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "passes/kernels/table.h"
#include "tests/executor.h"
#include "tests/test.h"

namespace dfpjax {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Values = std::vector<float>;

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T = float>
std::vector<T> room(int64_t size) {
  return std::vector<T>(static_cast<size_t>(size), T{7});  // to be overwritten
}

inline Values normal(int64_t size, float mean, float deviation, std::mt19937* random) {
  std::normal_distribution<float> distribution(mean, deviation);
  Values x(static_cast<size_t>(size));
  for (float& v : x) v = distribution(*random);
  return x;
}

// Calls run(kernels, executor, name) on every path, with one thread and with three.
template <class Run>
void on_every_path(Run run) {
  for (int i = 0; i < kIsaCount; ++i) {
    const IsaInfo& isa = all_isas()[i];
    if (!isa.usable) continue;
    for (const int threads : {1, 3}) {
      TestExecutor executor(threads);
      run(pass_kernels(static_cast<Isa>(i)), executor,
          std::string(isa.name) + ", " + std::to_string(threads) + " threads");
    }
  }
}

// The error that float32 sums over 32 rows may have, relative to the sum of magnitudes. It covers
// the rounding of their total to float32.
inline constexpr double kTolerance = 32 * 0x1p-24;

inline bool near(float actual, double expected, double magnitudes) {
  return std::abs(actual - expected) <= kTolerance * magnitudes + 1e-40;
}

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_EVERY_PATH_H_
