// The kernels of passes for x86 CPUs with AVX-512.
#include <immintrin.h>

#include <utility>

#include "passes/kernels/table.h"

namespace dfpjax {
namespace {

#include "isa/common-inl.h"
#include "passes/kernels/table-inl.h"

}  // namespace

extern const PassKernels kAvx512Passes;
const PassKernels kAvx512Passes = kTable;

}  // namespace dfpjax
