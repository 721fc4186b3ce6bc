// The avx512bw kernels. For AVX-512 CPUs without VNNI.
#include <immintrin.h>

#include "contraction/kernels/table.h"

namespace dfpjax {
namespace {

#include "contraction/kernels/simd_avx512-inl.h"

struct Dot {
  static constexpr bool kFused = false;
  static void add(__m512i& sum, __m512i a, __m512i b) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const ContractionKernels kAvx512BwContraction;
const ContractionKernels kAvx512BwContraction = make_table<Avx512<Dot>>();

}  // namespace dfpjax
