#include "passes/pooling.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace dfpjax {
namespace {

// Lists the pixels of image `x` in the window of output (i, j), row by row, and returns their
// number. Pixels outside of the image are left out, or are `outside` if that is not null.
template <class T>
int window(const Pool& pool, T* x, int64_t i, int64_t j, T* outside, T** taps) {
  const int64_t top = i * pool.height.stride - pool.height.padding;
  const int64_t left = j * pool.width.stride - pool.width.padding;
  int count = 0;
  for (int64_t row = top; row < top + pool.height.window; ++row)
    for (int64_t column = left; column < left + pool.width.window; ++column)
      if (row >= 0 && row < pool.height.in && column >= 0 && column < pool.width.in)
        taps[count++] = x + (row * pool.width.in + column) * pool.channels;
      else if (outside != nullptr)
        taps[count++] = outside;
  return count;
}

std::string too_large() { return "must have at most " + std::to_string(kMostTaps) + " pixels"; }

std::string check_axis(const char* name, const PoolAxis& axis) {
  const auto complain = [name](const std::string& what) { return name + (": " + what); };
  if (axis.in < 1 || axis.out < 1) return complain("an image has no pixels");
  if (axis.window < 1 || axis.stride < 1) return complain("window and stride must be positive");
  if (axis.window > kMostTaps) return complain(too_large());
  if (axis.padding < 0 || axis.padding >= axis.window)
    return complain("padding must be less than the window");
  // The last window must begin before the image ends. The division avoids a product, which a large
  // stride could make overflow.
  if (axis.out > 1 && axis.stride > (axis.in + axis.padding - 1) / (axis.out - 1))
    return complain("a window holds no pixel");
  return "";
}

}  // namespace

std::string check_pool(const Pool& pool) {
  std::string error = check_axis("height", pool.height);
  if (error.empty()) error = check_axis("width", pool.width);
  if (error.empty() && pool.height.window * pool.width.window > kMostTaps)
    error = "window: " + too_large();
  return error;
}

void max_pool(const Pool& pool, const float* x, float* out, const PassKernels& kernels,
              Executor& executor) {
  const int64_t image = pool.height.in * pool.width.in * pool.channels;
  const int64_t row = pool.width.out * pool.channels;
  const auto body = [&](int, int64_t begin, int64_t end) {
    const float* taps[kMostTaps];
    for (int64_t unit = begin; unit < end; ++unit) {
      const float* const from = x + unit / pool.height.out * image;
      for (int64_t j = 0; j < pool.width.out; ++j) {
        const int count = window<const float>(pool, from, unit % pool.height.out, j, nullptr, taps);
        kernels.max_of_taps(taps, count, pool.channels, out + unit * row + j * pool.channels);
      }
    }
  };
  run_stages(executor, {{Loop{pool.images * pool.height.out, 1, body}}});
}

void max_pool_gradient(const Pool& pool, const float* g, const float* x, float* out,
                       const PassKernels& kernels, Executor& executor) {
  // Windows overlap, so one thread handles all rows of an image. If there are few images, they are
  // cut along the channels.
  constexpr int64_t kUnits = 32, kQuantum = 16;
  const int64_t wanted = (kUnits + pool.images - 1) / std::max<int64_t>(pool.images, 1);
  const int64_t quanta = (pool.channels + kQuantum - 1) / kQuantum;
  const int64_t strip = std::max<int64_t>((quanta + wanted - 1) / wanted, 1) * kQuantum;
  const int64_t strips = (pool.channels + strip - 1) / strip;
  const int64_t pixels = pool.height.in * pool.width.in;
  const auto body = [&](int, int64_t begin, int64_t end) {
    const float* taps[kMostTaps];
    float* gradients[kMostTaps];
    // JAX pads the image with -infinity and may select the padding: after a NaN, or before pixels
    // of -infinity.
    const std::vector<float> least(static_cast<size_t>(strip),
                                   -std::numeric_limits<float>::infinity());
    std::vector<float> lost(static_cast<size_t>(strip));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / strips, first = unit % strips * strip;
      const int64_t channels = std::min(strip, pool.channels - first);
      const float* const from = x + image * pixels * pool.channels + first;
      float* const to = out + image * pixels * pool.channels + first;
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        std::memset(to + pixel * pool.channels, 0, static_cast<size_t>(channels) * sizeof(float));
      const float* cotangent = g + image * pool.height.out * pool.width.out * pool.channels + first;
      for (int64_t i = 0; i < pool.height.out; ++i)
        for (int64_t j = 0; j < pool.width.out; ++j, cotangent += pool.channels) {
          const int count = window<const float>(pool, from, i, j, least.data(), taps);
          window(pool, to, i, j, lost.data(), gradients);
          kernels.add_to_max_of_taps(taps, gradients, count, channels, cotangent);
        }
    }
  };
  run_stages(executor, {{Loop{pool.images * strips, 1, body}}});
}

}  // namespace dfpjax
