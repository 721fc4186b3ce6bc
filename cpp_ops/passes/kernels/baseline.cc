// The kernels of passes for any architecture, compiled without ISA flags.
#include <utility>

#include "passes/kernels/table.h"

namespace dfpjax {
namespace {

#include "isa/common-inl.h"
#include "passes/kernels/table-inl.h"

}  // namespace

extern const PassKernels kBaselinePasses;
const PassKernels kBaselinePasses = kTable;

}  // namespace dfpjax
