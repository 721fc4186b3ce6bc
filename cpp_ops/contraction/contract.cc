#include "contraction/contract.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "contraction/kept_operand.h"
#include "contraction/packing.h"
#include "contraction/scaling.h"
#include "contraction/winograd.h"
#include "plan/index.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dfpjax {
namespace {

// Writes zeros. They are not read soon, so they bypass the caches where possible.
void stream_zeros(float* to, int64_t n) {
  int64_t i = 0;
#if defined(__x86_64__)
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % 16 != 0; ++i) to[i] = 0;
  for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_setzero_ps());
#endif
  std::fill(to + i, to + n, 0.0f);
}

// A part with K = 0. Its sums are empty, so its scaled outputs are zero or NaN.
class Empty : public Job {
 public:
  Empty(const Part& part, const Operands& operands)
      : p_(part),
        c_(operands.c + part.base_c),
        c_g_(part.g, &Dim::stride_c, nullptr),
        c_m_(part.m, &Dim::stride_c, nullptr),
        scaling_(part, operands.ea, operands.eb),
        columns_(static_cast<size_t>(part.N)) {
    const Axis c_n(part.n, &Dim::stride_c, nullptr);
    c_n.offsets(0, part.N, 0, columns_.data());
    contiguous_ = c_n.run_extent() == part.N;
    stream_ = p_.G * p_.M * p_.N * int64_t{sizeof(float)} >= kStreamBytes;
  }

  void enlist(std::vector<Stage>* stages) override {
    const int64_t chunks = ceil_div(p_.M, kRows);
    (*stages)[kCompute].push_back(
        {p_.G * chunks, 1, [this, chunks](int, int64_t low, int64_t high) {
           for (int64_t i = low; i < high; ++i) fill(i / chunks, i % chunks * kRows);
#if defined(__x86_64__)
           _mm_sfence();
#endif
         }});
  }

 private:
  static constexpr int64_t kRows = 64;  // whose addresses are computed together

  void fill(int64_t g, int64_t m0) const {
    const int64_t m1 = std::min(m0 + kRows, p_.M);
    int64_t offsets[kRows];
    c_m_.offsets(m0, m1, c_g_.offset(g), offsets);
    for (int64_t m = m0; m < m1; ++m) {
      float* row = c_ + offsets[m - m0];
      if (contiguous_)
        stream_ ? stream_zeros(row, p_.N) : std::fill(row, row + p_.N, 0.0f);
      else
        for (int64_t column : columns_) row[column] = 0;
      if (!scaling_.is_factor()) scaling_.apply(g, m, 0, p_.N, columns_.data(), row);
    }
  }

  const Part& p_;
  float* const c_;
  const Axis c_g_, c_m_;
  const Scaling scaling_;
  std::vector<int64_t> columns_;
  bool contiguous_, stream_;
};

std::unique_ptr<Job> make_job(const Part& part, const Operands& operands, const Chains& chains,
                              const ContractionKernels& kernels, int threads, OperandReuse& reuse) {
  if (part.K == 0) return std::make_unique<Empty>(part, operands);
  if (part.mode == Mode::kLanes && chains.length == 0) {
    if (chains.lengths != nullptr)
      for (int64_t g = 0; g < part.G; ++g)
        chains.lengths->add(part, g, kChainLengths - 1, part.M * part.N * part.K);
    return make_lanes(part, operands, kernels, threads);
  }
  if (part.mode == Mode::kWinogradAlongM)
    return make_winograd_along_m(part, operands, chains, kernels, threads, reuse);
  if (part.mode == Mode::kWinogradAlongK)
    return make_winograd_along_k(part, operands, chains, kernels, threads);
  return make_tiles(part, operands, chains, kernels, threads, reuse);
}

}  // namespace

bool Counts::fits(const std::vector<Part>& parts) const {
  return std::all_of(parts.begin(), parts.end(),
                     [this](const Part& part) { return examples_ > 0 && part.G % examples_ == 0; });
}

void Counts::write_shares(float* to) const {
  for (auto low = counts_.begin(); low != counts_.end(); low += kinds_) {
    const auto high = low + kinds_;
    const auto total = static_cast<double>(std::accumulate(low, high, int64_t{0}));
    to = std::transform(low, high, to, [total](int64_t count) {
      return total == 0 ? 0.0f : static_cast<float>(static_cast<double>(count) / total);
    });
  }
}

void Counts::write(int32_t* to) const {
  for (const auto& count : counts_)
    *to++ =
        static_cast<int32_t>(std::min<int64_t>(count.load(), std::numeric_limits<int32_t>::max()));
}

void run_plan(const std::vector<Part>& parts, const Operands& operands, const Chains& chains,
              const ContractionKernels& kernels, Executor& executor, OperandReuse* reuse) {
  OperandReuse none;
  const bool counts = chains.length > 0 || chains.lengths != nullptr;  // must not run twice
  if (reuse == nullptr || parts.size() > 1 || counts) reuse = &none;
  do {
    std::vector<std::unique_ptr<Job>> jobs;
    std::vector<Stage> stages(Job::kStages);
    for (const Part& part : parts)
      jobs.push_back(make_job(part, operands, chains, kernels, executor.threads(), *reuse));
    reuse->enlist(&stages[Job::kCompute]);
    for (const auto& job : jobs) job->enlist(&stages);
    run_stages(executor, stages);
  } while (!reuse->finish());
}

}  // namespace dfpjax
