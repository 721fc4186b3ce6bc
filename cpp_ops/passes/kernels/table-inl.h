// The table of the kernels of passes for one kind of vectors. Included as isa/common-inl.h
// describes.

#include "passes/kernels/blocks-inl.h"
#include "passes/kernels/bools-inl.h"
#include "passes/kernels/fused-inl.h"
#include "passes/kernels/pool-inl.h"
#include "passes/kernels/produce-inl.h"
#include "passes/kernels/quantize-inl.h"
#include "passes/kernels/response-inl.h"
#include "passes/kernels/sums-inl.h"

constexpr PassKernels kTable = {moments,         paired_sums,       masked_sums,
                                rectified,       rectified_sum,     gradient,
                                masked,          largest_magnitude, quantize,
                                quantize_blocks, max_of_windows,    greatest_of_windows,
                                pool_gradient,   local_response,    local_response_gradient};
