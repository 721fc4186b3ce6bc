// The avxvnni kernels. For client CPUs that have VNNI but no AVX-512.
#include <immintrin.h>

#include "isa.h"

namespace dfpjax {
namespace {

#include "kernels_common.h"
#include "simd_avx2.h"

struct Dot {
  static void add(__m256i& sum, __m256i a, __m256i b) {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
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

extern const KernelTable kAvxVnniKernels;
const KernelTable kAvxVnniKernels = make_table<Avx2<Dot>>("avxvnni");

}  // namespace dfpjax
