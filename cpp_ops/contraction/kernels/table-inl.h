// All kernels of a path, in one table. See isa/common-inl.h for how it is included.

#include "contraction/kernels/cell-inl.h"
#include "contraction/kernels/lanes-inl.h"
#include "contraction/kernels/norms-inl.h"
#include "contraction/kernels/pack-inl.h"
#include "passes/kernels/pool-inl.h"
#include "passes/kernels/quantize-inl.h"
#include "passes/kernels/response-inl.h"
#include "passes/kernels/sums-inl.h"

template <class S>
constexpr KernelTable make_table(const char* name) {
  return {name,
          cell<S>,
          pack_rows<S>,
          pack_pairs<S>,
          transpose<S>,
          norms_rows<S>,
          norms_pairs<S>,
          lanes<S>,
          combine<S>,
          moments,
          paired_sums,
          rectified_sum,
          largest_magnitude,
          quantize,
          max_of_taps,
          add_to_max_of_taps,
          local_response,
          local_response_gradient,
          peak_dot<S>,
          peak_fma<S>};
}
