#include "passes/pooling.h"

#include <algorithm>

#include "runtime/scratch.h"

namespace dfpjax {
namespace {

// Results of at least this size bypass the caches, if pixels are of whole cache lines.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
constexpr int64_t kStreamQuantum = 16;

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
  const int64_t row = pool.width.out * pool.channels;
  const PooledRows all{&pool, x, 0, row, out, row};
  const auto body = [&](int, int64_t begin, int64_t end) {
    kernels.max_of_windows(all.from(begin, 0), end - begin, row);
  };
  if (row > 0) run_stages(executor, {{Loop{pool.images * pool.height.out, 1, body}}});
}

void max_pool_gradient(const Pool& pool, const float* g, const float* x, float* out,
                       const PassKernels& kernels, Executor& executor) {
  if (pool.images == 0 || pool.channels == 0) return;
  // A unit of work is a band of rows of an image: a row is written once, while what it needs is in
  // a cache. Bands share windows, of which each finds the greatest inputs, so they are not small.
  constexpr int64_t kUnits = 32;
  const PoolAxis& height = pool.height;
  const int64_t wanted = (kUnits + pool.images - 1) / pool.images;
  const int64_t band = std::max((height.in + wanted - 1) / wanted, 2 * height.window);
  const int64_t bands = (height.in + band - 1) / band;
  const int64_t row = pool.width.in * pool.channels, row_out = pool.width.out * pool.channels;
  // So many rows of windows cover one row.
  const int64_t slots = (height.window - 1) / height.stride + 1;
  const bool stream = pool.images * height.in * row * int64_t{sizeof(float)} >= kStreamBytes &&
                      pool.channels % kStreamQuantum == 0 &&
                      reinterpret_cast<uintptr_t>(out) % 64 == 0;
  const auto body = [&](int, int64_t begin, int64_t end) {
    const Scratch memory = Scratch::array<int32_t>({slots, row_out});
    int32_t* const inputs = memory.as<int32_t>();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / bands, first = unit % bands * band;
      const float* const of_image = x + image * height.in * row;
      PoolGradientRow at{&pool,   0,     g + image * height.out * row_out, inputs, slots,
                         nullptr, stream};
      // The first window that covers a row of the band.
      const int64_t before = first + height.padding - height.window;
      int64_t next = before < 0 ? 0 : before / height.stride + 1;
      for (int64_t r = first; r < std::min(first + band, height.in); ++r) {
        for (; next < height.out && next * height.stride - height.padding <= r; ++next)
          kernels.greatest_of_windows(pool, of_image, next, inputs + next % slots * row_out);
        at.row = r;
        at.out = out + (image * height.in + r) * row;
        kernels.pool_gradient(at);
      }
    }
  };
  run_stages(executor, {{Loop{pool.images * bands, 1, body}}});
}

}  // namespace dfpjax
