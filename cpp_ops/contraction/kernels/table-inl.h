// The table of the contraction kernels of one path. Included as isa/common-inl.h describes.

#include "contraction/kernels/cell-inl.h"
#include "contraction/kernels/exponents-inl.h"
#include "contraction/kernels/lanes-inl.h"
#include "contraction/kernels/norms-inl.h"
#include "contraction/kernels/pack-inl.h"
#include "contraction/kernels/peak-inl.h"
#include "contraction/kernels/scales-inl.h"
#include "contraction/kernels/segment_norms-inl.h"
#include "contraction/kernels/segments-inl.h"
#include "contraction/kernels/winograd-inl.h"

template <class S>
constexpr ContractionKernels make_table() {
  return {cell<S>,
          cell_in_blocks<S>,
          finish_tile,
          finish_panel,
          certify,
          pack_rows<S>,
          pack_pairs<S>,
          pack_shifted_rows<S>,
          pack_shifted_pairs<S>,
          transpose<S>,
          norms_rows<S>,
          norms_pairs<S>,
          segment_norms_rows<S>,
          segment_norms_pairs<S>,
          look_up,
          align_points,
          raise_exponents,
          largest_exponent,
          shifts_to,
          lanes<S, false>,
          lanes<S, true>,
          scaled_lanes<S>,
          add_exponent,
          add_exponents,
          scales_of,
          combine<S>,
          transform_patch<S>,
          quantize_rows<S>,
          pack_patches<S>,
          transform_back<S>,
          peak_dot<S>,
          peak_fma<S>};
}
