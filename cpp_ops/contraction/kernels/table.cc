#include "contraction/kernels/table.h"

namespace dfpjax {

#if defined(__x86_64__)
extern const ContractionKernels kAvx512VnniContraction, kAvx512BwContraction;
extern const ContractionKernels kAvxVnniContraction, kAvx2Contraction;
#endif
extern const ContractionKernels kPortableContraction;

const ContractionKernels& contraction_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512Vnni:
      return kAvx512VnniContraction;
    case Isa::kAvx512Bw:
      return kAvx512BwContraction;
#if defined(DFPJAX_HAVE_AVXVNNI)
    case Isa::kAvxVnni:
      return kAvxVnniContraction;
#endif
    case Isa::kAvx2:
      return kAvx2Contraction;
#endif
    default:
      return kPortableContraction;
  }
}

}  // namespace dfpjax
