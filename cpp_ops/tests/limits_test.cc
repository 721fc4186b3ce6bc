// Contractions whose packed operands are larger than 2^31 words, with operands that are small
// because most of their strides are zero.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "contraction/blocking.h"
#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "contraction/packing.h"
#include "plan/plan.h"
#include "tests/executor.h"
#include "tests/test.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dfpjax {
namespace {

Dim dim(int64_t extent, int64_t a, int64_t b, int64_t c) { return {extent, a, b, c, 0, 0, -1, 0}; }

// K is 22.5 million: 88000 blocks of 256, all of them the same.
constexpr int64_t kRepeats = 88000;

// A[M, K] B[K, 256] with sums of one split.
Part long_part(int64_t rows) {
  Part part{};
  part.mode = Mode::kTiles;
  part.blocks_per_split = kRepeats;
  part.m = {dim(rows, kBlock, 0, 256)};
  part.n = {dim(256, 0, 1, 1)};
  part.k = {dim(kRepeats, 0, 0, 0), dim(kBlock, 1, 256, 0)};
  part.G = 1, part.M = rows, part.N = 256, part.K = kRepeats * kBlock;
  return part;
}

Isa best() {
  std::string error;
  return *find_isa("", &error);
}

// Packs the panels of one block of B as far apart as in a B that is packed as a whole.
void check_packing() {
#if defined(__linux__)
  const int64_t stride = kRepeats * PackerB::block_words(kPanelColumns, kBlock);
  const int64_t words = 4 * stride;
  void* const room =
      mmap(nullptr, static_cast<size_t>(words) * sizeof(int32_t), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) {
    std::printf("skipped: panels that are far apart, since there is no address space for them\n");
    return;
  }
  auto* const out = static_cast<int32_t*>(room);
  std::vector<int16_t> b(256 * 256);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int16_t>(i * 7);
  const PackerB packer(long_part(1), b.data(), nullptr, contraction_kernels(best()), false);
  PackingSpace space(0, 1);
  packer.pack(0, 0, 256, 0, kBlock, &space, out, stride, nullptr, nullptr, 0);
  bool right = true;
  for (int64_t column = 0; column < 256; ++column)
    for (int64_t k = 0; k < kBlock; ++k) {
      const int32_t word =
          out[column / 64 * stride + k / 2 * kPanelColumns + column % kPanelColumns];
      const auto half = static_cast<int16_t>(k % 2 == 0 ? word & 0xffff : word >> 16);
      right &= half == b[static_cast<size_t>(k * 256 + column)];
    }
  expect(right, "panels that are far apart");
  munmap(room, static_cast<size_t>(words) * sizeof(int32_t));
#endif
}

// Runs the whole contraction. Many threads cut 12 rows into two blocks, which would share B.
void check_contraction() {
  constexpr int64_t kRows = 12;
  constexpr int kThreads = 16;
  const Part part = long_part(kRows);
  const Blocking blocking = choose_blocking({1, 2, 4, part.K, Source::kAlongK, true}, kThreads);
  expect(blocking.row_blocks == 2, "rows in two blocks");
  std::vector<int16_t> a(kRows * kBlock), b(256 * 256);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<int16_t>(i * 5 % 17) - 8;
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<int16_t>(i * 3 % 19) - 9;
  const int32_t exponent = 0;
  std::vector<float> c(kRows * 256);
  TestExecutor executor(kThreads);
  run_plan({part}, {a.data(), b.data(), &exponent, &exponent, c.data()}, Chains{},
           contraction_kernels(best()), executor);
  bool right = true;
  for (size_t m = 0; m < kRows; ++m)
    for (size_t n = 0; n < 256; ++n) {
      int32_t sum = 0;
      for (size_t k = 0; k < kBlock; ++k) sum += a[m * kBlock + k] * b[k * 256 + n];
      float total = 0;
      for (int64_t i = 0; i < kRepeats; ++i) total += static_cast<float>(sum);
      right &= total == c[m * 256 + n];
    }
  expect(right, "a contraction of 22.5 million products");
}

}  // namespace

void run_test(bool quick) {
  check_packing();
  if (quick)
    std::printf("skipped: a contraction of 22.5 million products, which is slow here\n");
  else
    check_contraction();
}

}  // namespace dfpjax
