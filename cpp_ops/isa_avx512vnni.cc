// The avx512vnni kernels. Extended asm keeps the compiler from spilling the sums of the register
// tile.
#include <immintrin.h>

#include "isa.h"

namespace dfpjax {
namespace {

#include "kernels_common.h"
#include "simd_avx512.h"

struct Dot {
  static void add(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
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

extern const KernelTable kAvx512VnniKernels;
const KernelTable kAvx512VnniKernels = make_table<Avx512<Dot>>("avx512vnni");

}  // namespace dfpjax
