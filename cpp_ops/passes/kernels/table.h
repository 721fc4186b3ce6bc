// The kernels that passes are made of, as a table of functions for each kind of vectors.
#ifndef DFPJAX_PASSES_KERNELS_TABLE_H_
#define DFPJAX_PASSES_KERNELS_TABLE_H_

#include <cstdint>

#include "isa/isa.h"

namespace dfpjax {

// Rows [rows][channels] of g and x; centre, sums and products have one number per channel.
struct PairedRows {
  const float *g, *x, *centre;
  // Null, or: g is zero unless (x - centre) * scale + shift > 0.
  const float *scale, *shift;
  double *sums, *products;

  PairedRows from(int64_t channel) const {
    const bool rectified = scale != nullptr;
    return {g + channel,
            x + channel,
            centre + channel,
            rectified ? scale + channel : nullptr,
            rectified ? shift + channel : nullptr,
            sums + channel,
            products + channel};
  }
};

// Rows [rows][channels] of x, residual, out and positive; the others have one number per channel.
struct RectifiedRows {
  const float *x, *residual, *mean, *scale, *shift;
  float* out;
  bool* positive;  // may be null
  float* low;
  int32_t* high_bits;

  RectifiedRows from(int64_t channel) const {
    return {x + channel,
            residual + channel,
            mean + channel,
            scale + channel,
            shift + channel,
            out + channel,
            positive == nullptr ? nullptr : positive + channel,
            low + channel,
            high_bits + channel};
  }
};

// Divides x by (k + alpha * sum of x^2 over the channels at most `reach` away)^0.75.
struct Response {
  int64_t reach;
  float k, alpha;
};
// The kernels of local response normalization need memory: kResponseRows rows of response_row
// numbers, zero at first, since vectors read and write beyond the channels.
inline constexpr int64_t kResponseRows = 3;
inline int64_t response_row(int64_t channels, int64_t reach) { return channels + 2 * reach + 16; }

struct PassKernels {
  // Over rows [rows][channels]: adds the sums and the sums of squares of each channel, lowers and
  // raises its least and greatest value, which leave NaNs out.
  void (*moments)(const float* x, int64_t rows, int64_t channels, double* sums, double* squares,
                  float* low, float* high);
  // Likewise adds sums of g and of g * (x - centre).
  void (*paired_sums)(const PairedRows& at, int64_t rows, int64_t channels);
  // out = max((x - mean) * scale + shift + residual, 0), and whether it is positive; lowers its
  // least value, NaNs left out, and raises the bits of its greatest, where a NaN is the greatest.
  void (*rectified_sum)(const RectifiedRows& at, int64_t rows, int64_t channels);
  // The greatest of the numbers' bits without their signs: infinity's or more if not all are
  // finite.
  int32_t (*largest_magnitude)(const float* x, int64_t count);
  // out = x * first * second, rounded to the nearest, ties to even, and clamped to +-limit.
  void (*quantize)(const float* x, int64_t count, float first, float second, int32_t limit,
                   int16_t* out);
  // Of `count` >= 1 pixels of so many channels: the maximum of each channel, NaN if one is NaN; and
  // g added to `gradients` of the pixel that has the maximum, the first one of several.
  void (*max_of_taps)(const float* const* taps, int count, int64_t channels, float* out);
  void (*add_to_max_of_taps)(const float* const* taps, float* const* gradients, int count,
                             int64_t channels, const float* g);

  // Of pixels [rows][channels]; see Response. And the gradient by x, for that of the result, g.
  void (*local_response)(const Response& response, const float* x, int64_t rows, int64_t channels,
                         float* memory, float* out);
  void (*local_response_gradient)(const Response& response, const float* g, const float* x,
                                  int64_t rows, int64_t channels, float* memory, float* out);
};

// The path must be usable.
const PassKernels& pass_kernels(Isa isa);

}  // namespace dfpjax

#endif  // DFPJAX_PASSES_KERNELS_TABLE_H_
