// The avx2 kernels. For x86 CPUs without AVX-512 and AVX-VNNI.
#include <immintrin.h>

#include "isa.h"

namespace dfpjax {
namespace {

#include "kernels_common.h"
#include "simd_avx2.h"

struct Dot {
  static void add(__m256i& sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
};

#include "kernels_cell.h"
#include "kernels_lanes.h"
#include "kernels_norms.h"
#include "kernels_pack.h"
#include "kernels_pool.h"
#include "kernels_quantize.h"
#include "kernels_response.h"
#include "kernels_sums.h"
#include "kernels_table.h"

}  // namespace

extern const KernelTable kAvx2Kernels;
const KernelTable kAvx2Kernels = make_table<Avx2<Dot>>("avx2");

}  // namespace dfpjax
