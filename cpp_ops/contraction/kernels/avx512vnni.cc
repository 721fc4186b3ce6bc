// The avx512vnni kernels. Extended asm keeps the compiler from spilling the sums of the register
// tile.
#include <immintrin.h>

#include "contraction/kernels/table.h"

namespace dfpjax {
namespace {

#include "contraction/kernels/simd_avx512-inl.h"

struct Dot {
  static constexpr bool kFused = true;
  static void add(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const ContractionKernels kAvx512VnniContraction;
const ContractionKernels kAvx512VnniContraction = make_table<Avx512<Dot>>();

}  // namespace dfpjax
