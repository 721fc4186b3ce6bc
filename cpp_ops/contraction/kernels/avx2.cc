// The avx2 kernels. For x86 CPUs without AVX-512 and AVX-VNNI.
#include <immintrin.h>

#include "contraction/kernels/table.h"

namespace dfpjax {
namespace {

#include "contraction/kernels/simd_avx2-inl.h"

struct Dot {
  static constexpr bool kFused = false;
  static void add(__m256i& sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const ContractionKernels kAvx2Contraction;
const ContractionKernels kAvx2Contraction = make_table<Avx2<Dot>>();

}  // namespace dfpjax
