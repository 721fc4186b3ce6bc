// The XLA handlers of passes over float32 activations: channel sums, quantization, pooling, local
// response normalization.
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "ffi/pass_support.h"
#include "passes/block_quantize.h"
#include "passes/channel_sums.h"
#include "passes/kernels/table.h"
#include "passes/local_response.h"
#include "passes/pooling.h"
#include "passes/quantize.h"

namespace dfpjax {
namespace {

std::string check_channels(const Floats& x) {
  return x.dimensions().size() == 3 ? "" : must_be("x", "[groups, rows, channels]");
}

ChannelShape channel_shape(const Floats& x) {
  return {x.dimensions()[0], x.dimensions()[1], x.dimensions()[2]};
}

size_t channel_count(const Floats& x) {
  const ChannelShape shape = channel_shape(x);
  return static_cast<size_t>(shape.groups * shape.channels);
}

ffi::Error run_moments(Floats x, ffi::Result<Floats> sums, ffi::Result<Floats> squares,
                       ffi::Result<Floats> low, ffi::Result<Floats> high, ffi::ThreadPool pool,
                       std::string_view isa, int64_t threads) {
  std::string error = check_channels(x);
  if (error.empty()) {
    for (const auto& out : {*sums, *squares, *low, *high})
      if (out.element_count() != channel_count(x)) error = must_be("results", "[groups, channels]");
  }
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Moments out{sums->typed_data(), squares->typed_data(), low->typed_data(),
                      high->typed_data()};
    moments(channel_shape(x), x.typed_data(), out, kernels, executor);
  });
}

std::string check_paired(const Floats& g, const Floats& x, std::initializer_list<Floats> others) {
  std::string error = check_channels(x);
  if (!error.empty()) return error;
  if (g.element_count() != x.element_count()) error = must_be("g", "of x's size");
  for (const auto& tensor : others)
    if (tensor.element_count() != channel_count(x))
      error = must_be("operands but g and x, and results", "[groups, channels]");
  return error;
}

ffi::Error run_paired_sums(Floats g, Floats x, Floats centre, ffi::Result<Floats> sums,
                           ffi::Result<Floats> products, ffi::ThreadPool pool, std::string_view isa,
                           int64_t threads) {
  const std::string error = check_paired(g, x, {centre, *sums, *products});
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Paired in{g.typed_data(), x.typed_data(), centre.typed_data(), nullptr, nullptr};
    paired_sums(channel_shape(x), in, sums->typed_data(), products->typed_data(), kernels,
                executor);
  });
}

ffi::Error run_rectified_sums(Floats g, Floats x, Floats centre, Floats scale, Floats shift,
                              ffi::Result<Floats> sums, ffi::Result<Floats> products,
                              ffi::ThreadPool pool, std::string_view isa, int64_t threads) {
  const std::string error = check_paired(g, x, {centre, scale, shift, *sums, *products});
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Paired in{g.typed_data(), x.typed_data(), centre.typed_data(), scale.typed_data(),
                    shift.typed_data()};
    paired_sums(channel_shape(x), in, sums->typed_data(), products->typed_data(), kernels,
                executor);
  });
}

ffi::Error run_rectified_sum(Floats x, Floats residual, Floats mean, Floats scale, Floats shift,
                             ffi::Result<Floats> y, ffi::Result<Truth> positive,
                             ffi::Result<Floats> low, ffi::Result<Floats> high,
                             ffi::ThreadPool pool, std::string_view isa, int64_t threads) {
  std::string error = check_channels(x);
  const size_t size = x.element_count();
  if (error.empty()) {
    for (const auto& tensor : {mean, scale, shift, *low, *high})
      if (tensor.element_count() != channel_count(x))
        error = must_be("mean, scale, shift, low and high", "[groups, channels]");
    if (residual.element_count() != size || y->element_count() != size)
      error = must_be("residual and y", "of x's size");
    if (positive->element_count() != size && positive->element_count() != 0)
      error = must_be("positive", "of x's size or empty");
  }
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Rectified in{x.typed_data(), residual.typed_data(), mean.typed_data(), scale.typed_data(),
                       shift.typed_data()};
    const RectifiedSum out{y->typed_data(),
                           positive->element_count() == 0 ? nullptr : positive->typed_data(),
                           low->typed_data(), high->typed_data()};
    rectified_sum(channel_shape(x), in, out, kernels, executor);
  });
}

ffi::Error run_masked_sums(Floats x, Truth positive, ffi::Result<Floats> sums, ffi::ThreadPool pool,
                           std::string_view isa, int64_t threads) {
  std::string error = check_channels(x);
  if (error.empty()) {
    if (positive.element_count() != x.element_count()) error = must_be("positive", "of x's size");
    if (sums->element_count() != channel_count(x)) error = must_be("result", "[groups, channels]");
  }
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    masked_sums(channel_shape(x), x.typed_data(), positive.typed_data(), sums->typed_data(),
                kernels, executor);
  });
}

ffi::Error run_largest(Floats x, ffi::Result<Numbers> out, ffi::ThreadPool pool,
                       std::string_view isa, int64_t threads) {
  const std::string error = out->element_count() == 1 ? "" : must_be("result", "one number");
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    largest_magnitude(x.typed_data(), static_cast<int64_t>(x.element_count()), out->typed_data(),
                      kernels, executor);
  });
}

ffi::Error run_quantize(Floats x, ffi::Result<Mantissas> mantissas, ffi::Result<Numbers> exponent,
                        ffi::ThreadPool pool, std::string_view isa, int64_t threads, int64_t bits) {
  std::string error;
  if (mantissas->element_count() != x.element_count()) error = must_be("mantissas", "of x's size");
  if (exponent->element_count() != 1) error = must_be("exponent", "one number");
  if (bits < 2 || bits > 16) error = must_be("bits", "from 2 to 16");
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    quantize(x.typed_data(), static_cast<int64_t>(x.element_count()), static_cast<int>(bits),
             mantissas->typed_data(), exponent->typed_data(), kernels, executor);
  });
}

ffi::Error run_quantize_blocks(Floats x, ffi::Buffer<ffi::U32> seeds,
                               ffi::Result<Mantissas> mantissas, ffi::Result<Numbers> exponents,
                               ffi::ThreadPool pool, std::string_view isa, int64_t threads,
                               int64_t bits, std::string_view rounding, Sizes view_of_x,
                               Sizes block_of_x) {
  const Extents view = extents_of(view_of_x, x.dimensions());
  const Extents block = extents_of(block_of_x, x.dimensions());
  std::string error;
  BlockedShape shape{};
  const bool seeded = seeds.element_count() != 0;
  const std::optional<BlockRounding> mode = find_rounding(rounding, seeded);
  if (view.size() != 4 || !has_size(view, x.element_count())) {
    error = must_be("view", "the extents [examples, outer, rows, columns] of x");
  } else if (block.size() != 2) {
    error = must_be("block", "the rows and columns of a block");
  } else {
    shape = {view[0], view[1], view[2], view[3], block[0], block[1]};
    error = check_blocks(shape, bits);
  }
  if (error.empty()) {
    if (mantissas->element_count() != x.element_count())
      error = must_be("mantissas", "of x's size");
    if (static_cast<int64_t>(exponents->element_count()) != shape.blocks())
      error = must_be("exponents", "one for each block");
    if (seeded &&
        (rounding != "stochastic" || static_cast<int64_t>(seeds.element_count()) != shape.examples))
      error = must_be("seeds", "one for each example, or none, and none unless stochastic");
    if (!mode) error = must_be("rounding", "nearest, stochastic, biased or truncate");
  }
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const BlockedOperand to{static_cast<int>(bits), *mode, seeds.typed_data(),
                            mantissas->typed_data(), exponents->typed_data()};
    quantize_blocks(shape, x.typed_data(), to, kernels, executor);
  });
}

ffi::Error run_max_pool(Floats x, ffi::Result<Floats> out, ffi::ThreadPool pool,
                        std::string_view isa, int64_t threads, Sizes windows) {
  const std::string error = check_images(x, *out, windows);
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    max_pool(pool_of(x, *out, windows), x.typed_data(), out->typed_data(), kernels, executor);
  });
}

ffi::Error run_max_pool_gradient(Floats g, Floats x, ffi::Result<Floats> out, ffi::ThreadPool pool,
                                 std::string_view isa, int64_t threads, Sizes windows) {
  std::string error = check_images(x, g, windows);
  if (out->element_count() != x.element_count()) error = must_be("result", "of x's size");
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    max_pool_gradient(pool_of(x, g, windows), g.typed_data(), x.typed_data(), out->typed_data(),
                      kernels, executor);
  });
}

std::string check_response(const Floats& x, std::initializer_list<Floats> others, int64_t reach) {
  if (x.dimensions().size() != 2) return must_be("x", "[rows, channels]");
  for (const auto& tensor : others)
    if (tensor.element_count() != x.element_count())
      return must_be("operands and result", "of x's size");
  if (reach < 0 || reach > x.dimensions()[1]) return must_be("reach", "from 0 to the channels");
  return "";
}

ffi::Error run_local_response(Floats x, ffi::Result<Floats> out, ffi::ThreadPool pool,
                              std::string_view isa, int64_t threads, int64_t reach, float k,
                              float alpha) {
  const std::string error = check_response(x, {*out}, reach);
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    local_response({reach, k, alpha}, x.dimensions()[0], x.dimensions()[1], x.typed_data(),
                   out->typed_data(), kernels, executor);
  });
}

ffi::Error run_local_response_gradient(Floats g, Floats x, ffi::Result<Floats> out,
                                       ffi::ThreadPool pool, std::string_view isa, int64_t threads,
                                       int64_t reach, float k, float alpha) {
  const std::string error = check_response(x, {g, *out}, reach);
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    local_response_gradient({reach, k, alpha}, x.dimensions()[0], x.dimensions()[1], g.typed_data(),
                            x.typed_data(), out->typed_data(), kernels, executor);
  });
}

template <class Binding>
auto response(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("reach")
      .template Attr<float>("k")
      .template Attr<float>("alpha");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moments_v1, Guarded<run_moments>::call,
    pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(rectified_sums_v1, Guarded<run_rectified_sums>::call,
                              pass(ffi::Ffi::Bind()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Ret<Floats>()
                                       .Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(rectified_sum_v1, Guarded<run_rectified_sum>::call,
                              pass(ffi::Ffi::Bind()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Arg<Floats>()
                                       .Ret<Floats>()
                                       .Ret<Truth>()
                                       .Ret<Floats>()
                                       .Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    paired_sums_v1, Guarded<run_paired_sums>::call,
    pass(ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(masked_sums_v1, Guarded<run_masked_sums>::call,
                              pass(ffi::Ffi::Bind().Arg<Floats>().Arg<Truth>().Ret<Floats>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(largest_magnitude_v1, Guarded<run_largest>::call,
                              pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Numbers>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    quantize_v1, Guarded<run_quantize>::call,
    pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Mantissas>().Ret<Numbers>()).Attr<int64_t>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    quantize_blocks_v1, Guarded<run_quantize_blocks>::call,
    pass(
        ffi::Ffi::Bind().Arg<Floats>().Arg<ffi::Buffer<ffi::U32>>().Ret<Mantissas>().Ret<Numbers>())
        .Attr<int64_t>("bits")
        .Attr<std::string_view>("rounding")
        .Attr<Sizes>("view")
        .Attr<Sizes>("block"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_pool_v1, Guarded<run_max_pool>::call,
    pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>()).Attr<Sizes>("windows"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    max_pool_gradient_v1, Guarded<run_max_pool_gradient>::call,
    pass(ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>()).Attr<Sizes>("windows"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(local_response_v1, Guarded<run_local_response>::call,
                              response(pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    local_response_gradient_v1, Guarded<run_local_response_gradient>::call,
    response(pass(ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>())));

}  // namespace

Handlers pass_handlers() {
  return {{"dfpjax_moments_v1", moments_v1},
          {"dfpjax_paired_sums_v1", paired_sums_v1},
          {"dfpjax_rectified_sums_v1", rectified_sums_v1},
          {"dfpjax_rectified_sum_v1", rectified_sum_v1},
          {"dfpjax_masked_sums_v1", masked_sums_v1},
          {"dfpjax_largest_magnitude_v1", largest_magnitude_v1},
          {"dfpjax_quantize_v1", quantize_v1},
          {"dfpjax_quantize_blocks_v1", quantize_blocks_v1},
          {"dfpjax_max_pool_v1", max_pool_v1},
          {"dfpjax_max_pool_gradient_v1", max_pool_gradient_v1},
          {"dfpjax_local_response_v1", local_response_v1},
          {"dfpjax_local_response_gradient_v1", local_response_gradient_v1}};
}

}  // namespace dfpjax
