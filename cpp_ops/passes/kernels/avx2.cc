// The kernels of passes for x86 CPUs with AVX2.
#include <immintrin.h>

#include <utility>

#include "passes/kernels/table.h"

namespace dfpjax {
namespace {

#include "isa/common-inl.h"
#include "passes/kernels/table-inl.h"

}  // namespace

extern const PassKernels kAvx2Passes;
const PassKernels kAvx2Passes = kTable;

}  // namespace dfpjax
