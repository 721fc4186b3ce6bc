// The avx512bw kernels. For AVX-512 CPUs without VNNI.
#include <immintrin.h>

#include "isa.h"

namespace dfpjax {
namespace {

#include "kernels_common.h"
#include "simd_avx512.h"

struct Dot {
  static void add(__m512i& sum, __m512i a, __m512i b) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
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

extern const KernelTable kAvx512BwKernels;
const KernelTable kAvx512BwKernels = make_table<Avx512<Dot>>("avx512bw");

}  // namespace dfpjax
