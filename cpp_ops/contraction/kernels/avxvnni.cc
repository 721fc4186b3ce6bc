// The avxvnni kernels. For client CPUs that have VNNI but no AVX-512.
#include <immintrin.h>

#include "contraction/kernels/table.h"

namespace dfpjax {
namespace {

#include "contraction/kernels/simd_avx2-inl.h"

struct Dot {
  static constexpr bool kFused = true;
  static void add(__m256i& sum, __m256i a, __m256i b) {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  }
};

#include "contraction/kernels/table-inl.h"

}  // namespace

extern const ContractionKernels kAvxVnniContraction;
const ContractionKernels kAvxVnniContraction = make_table<Avx2<Dot>>();

}  // namespace dfpjax
