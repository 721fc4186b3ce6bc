#include "passes/kernels/table.h"

namespace dfpjax {

#if defined(__x86_64__)
extern const PassKernels kAvx512Passes, kAvx2Passes;
#endif
extern const PassKernels kBaselinePasses;

// Passes multiply no integers, so paths that differ only in integer products share their kernels.
const PassKernels& pass_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bw:
      return kAvx512Passes;
    case Isa::kAvxVnni:
    case Isa::kAvx2:
      return kAvx2Passes;
#endif
    default:
      return kBaselinePasses;
  }
}

}  // namespace dfpjax
