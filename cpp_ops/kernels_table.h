// Collects a path's kernels. See kernels_common.h for how it is included.

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
