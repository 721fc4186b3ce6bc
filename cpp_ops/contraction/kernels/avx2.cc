// The avx2 kernels. For x86 CPUs without AVX-512 and AVX-VNNI.
#include <immintrin.h>

#include "isa/isa.h"

namespace dfpjax {
namespace {

#include "isa/common-inl.h"
#include "isa/simd_avx2-inl.h"

struct Dot {
  static void add(__m256i& sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const KernelTable kAvx2Kernels;
const KernelTable kAvx2Kernels = make_table<Avx2<Dot>>("avx2");

}  // namespace dfpjax
