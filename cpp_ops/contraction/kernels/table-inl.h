// The table of the contraction kernels of one path. Included as isa/common-inl.h describes.

#include "contraction/kernels/cell-inl.h"
#include "contraction/kernels/lanes-inl.h"
#include "contraction/kernels/norms-inl.h"
#include "contraction/kernels/pack-inl.h"
#include "contraction/kernels/peak-inl.h"

template <class S>
constexpr ContractionKernels make_table() {
  return {cell<S>,         pack_rows<S>,         pack_pairs<S>,
          pack_pieces<S>,  pack_shifted_rows<S>, pack_shifted_pairs<S>,
          transpose<S>,    norms_rows<S>,        norms_pairs<S>,
          lanes<S, false>, lanes<S, true>,       combine<S>,
          peak_dot<S>,     peak_fma<S>};
}
