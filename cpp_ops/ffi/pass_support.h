// Shared by the XLA handlers of passes: types of buffers, what every pass has, checks.
#ifndef DFPJAX_FFI_PASS_SUPPORT_H_
#define DFPJAX_FFI_PASS_SUPPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ffi/support.h"
#include "isa/isa.h"
#include "passes/kernels/table.h"
#include "passes/pooling.h"

namespace dfpjax {

using Floats = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Buffer<ffi::S32>;
using Mantissas = ffi::Buffer<ffi::S16>;
using Truth = ffi::Buffer<ffi::PRED>;
using Sizes = ffi::Span<const int64_t>;

// Finds the kernels and runs `work(kernels, executor)`, unless something is wrong.
template <class Work>
ffi::Error run(std::string error, const ffi::ThreadPool& pool, std::string_view isa,
               int64_t threads, Work work) {
  if (threads < 0) error = "threads: must not be negative";
  std::string why;
  const std::optional<Isa> path = find_isa(std::string(isa).c_str(), &why);
  if (!path) error = "isa: " + why;
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  ffi::ThreadPool own = pool;
  XlaExecutor executor(&own, threads);
  work(pass_kernels(*path), executor);
  return ffi::Error::Success();
}

inline std::string must_be(const char* name, const char* what) {
  return std::string(name) + ": must be " + what;
}

using Extents = std::vector<int64_t>;

// The extents that an attribute has of a tensor of this shape. Where a program does not say one,
// because it was exported with symbolic shapes, there is −mask for the product of the tensor's axes
// whose bits the mask has.
inline Extents extents_of(Sizes attribute, Sizes shape) {
  Extents extents(attribute.begin(), attribute.end());
  for (int64_t& extent : extents) {
    if (extent >= 0) continue;
    const auto mask = uint64_t{0} - static_cast<uint64_t>(extent);
    extent = 1;
    for (size_t axis = 0; axis < 63; ++axis)
      if ((mask >> axis & 1) != 0 &&
          (axis >= shape.size() || __builtin_mul_overflow(extent, shape.begin()[axis], &extent)))
        return {};
  }
  return extents;
}

// Whether a tensor with these extents has so many numbers.
inline bool has_size(const Extents& extents, size_t numbers) {
  int64_t size = 1;
  for (const int64_t extent : extents)
    if (extent < 0 || __builtin_mul_overflow(size, extent, &size)) return false;
  return size == static_cast<int64_t>(numbers);
}

// `seeds` says how stochastic rounding gets its random bits: from seeds, or from the numbers.
inline std::optional<BlockRounding> find_rounding(std::string_view name, bool seeds) {
  if (name == "nearest") return BlockRounding::kNearest;
  if (name == "biased") return BlockRounding::kBiased;
  if (name == "truncate") return BlockRounding::kTruncate;
  if (name == "stochastic") return seeds ? BlockRounding::kSeed : BlockRounding::kOwnBits;
  return std::nullopt;
}

// `windows` holds the window, stride and padding of the height, then of the width.
template <class In, class Out>
Pool pool_of(const In& in, const Out& out, Sizes windows) {
  const auto axis = [&](size_t i) {
    const int64_t* const w = windows.begin() + 3 * (i - 1);
    return PoolAxis{in.dimensions()[i], out.dimensions()[i], w[0], w[1], w[2]};
  };
  return {in.dimensions()[0], in.dimensions()[3], axis(1), axis(2)};
}

template <class In, class Out>
std::string check_images(const In& in, const Out& out, Sizes windows) {
  if (in.dimensions().size() != 4 || out.dimensions().size() != 4)
    return must_be("images", "[images, height, width, channels]");
  if (windows.size() != 6)
    return must_be("windows", "window, stride and padding of height and width");
  if (in.dimensions()[0] != out.dimensions()[0] || in.dimensions()[3] != out.dimensions()[3])
    return must_be("images and channels", "as many before and after");
  if (in.dimensions()[0] == 0 || in.dimensions()[3] == 0) return "";  // nothing to be done
  return check_pool(pool_of(in, out, windows));
}

// Completes a binding of operands and results with what every pass has.
template <class Binding>
auto pass(Binding binding) {
  return std::move(binding)
      .template Ctx<ffi::ThreadPool>()
      .template Attr<std::string_view>("isa")
      .template Attr<int64_t>("threads");
}

}  // namespace dfpjax

#endif  // DFPJAX_FFI_PASS_SUPPORT_H_
