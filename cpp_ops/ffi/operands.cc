// The XLA handlers of passes that compute a tensor and quantize it at once. Operands and results
// that are absent are empty.
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ffi/pass_support.h"
#include "passes/produced_operand.h"

namespace dfpjax {
namespace {

std::string first_of(std::initializer_list<std::string> errors) {
  for (const std::string& error : errors)
    if (!error.empty()) return error;
  return "";
}

// The operand that a pass writes.
struct Operand {
  size_t size, channels;
  BlockedShape shape;
  BlockedOperand to;

  // Errors unless a tensor has x's size, or one number for each channel.
  template <class Tensor>
  std::string check_size(const char* name, const Tensor& tensor) const {
    return tensor.element_count() == size ? "" : must_be(name, "of x's size");
  }
  std::string check_channels(const char* name, const Floats& tensor) const {
    return tensor.element_count() == channels ? "" : must_be(name, "one number for each channel");
  }
};

// Returns what is wrong with its description. It has the shape of x.
template <class Tensor>
std::string describe(const Tensor& x, Mantissas mantissas, Numbers exponents, int64_t bits,
                     std::string_view rounding, Sizes view_of_x, Sizes block_of_x,
                     Operand* operand) {
  const Extents view = extents_of(view_of_x, x.dimensions());
  const Extents block = extents_of(block_of_x, x.dimensions());
  if (x.dimensions().size() == 0) return must_be("x", "[..., channels]");
  const int64_t channels = x.dimensions().back();
  if (view.size() != 3 || !has_size(view, x.element_count()) ||
      (channels == 0 ? view[2] != 0 : view[2] % channels != 0))
    return must_be("view", "the extents [outer, rows, columns] of x, columns of whole channels");
  if (block.size() != 2) return must_be("block", "the rows and columns of a block");
  const std::optional<BlockRounding> mode = find_rounding(rounding, /*seeds=*/false);
  if (!mode) return must_be("rounding", "nearest, stochastic, biased or truncate");
  operand->size = x.element_count();
  operand->channels = static_cast<size_t>(channels);
  operand->shape = {1, view[0], view[1], view[2], block[0], block[1]};
  operand->to = {static_cast<int>(bits), *mode, nullptr, mantissas.typed_data(),
                 exponents.typed_data()};
  const std::string error = check_blocks(operand->shape, bits);
  if (!error.empty()) return error;
  if (static_cast<int64_t>(exponents.element_count()) != operand->shape.blocks())
    return must_be("exponents", "one for each block");
  return operand->check_size("mantissas", mantissas);
}

template <class Tensor>
bool is_given(const Tensor& tensor) {
  return tensor.element_count() != 0;
}
template <class Tensor>
auto* or_null(Tensor tensor) {
  return is_given(tensor) ? tensor.typed_data() : nullptr;
}

ffi::Error run_rectified(Floats x, Floats shift, Floats mean, Floats scale, Floats residual,
                         ffi::Result<Mantissas> mantissas, ffi::Result<Numbers> exponents,
                         ffi::Result<Floats> y, ffi::Result<Truth> positive,
                         ffi::Result<Floats> low, ffi::Result<Floats> high, ffi::ThreadPool pool,
                         std::string_view isa, int64_t threads, int64_t bits,
                         std::string_view rounding, Sizes view, Sizes block) {
  Operand operand{};
  std::string error = describe(x, *mantissas, *exponents, bits, rounding, view, block, &operand);
  // A tensor without numbers has extremes, too.
  const bool summed = is_given(residual) || is_given(*low);
  const auto check_sum = [&](const char* name, const auto& tensor) {
    if (summed) return operand.check_size(name, tensor);
    return is_given(tensor) ? must_be(name, "empty without a residual") : "";
  };
  const auto check_extreme = [&](const char* name, const Floats& tensor) {
    return summed ? operand.check_channels(name, tensor) : check_sum(name, tensor);
  };
  if (error.empty())
    error = first_of({operand.check_channels("shift", shift),
                      is_given(mean) ? operand.check_channels("mean", mean) : "",
                      is_given(scale) ? operand.check_channels("scale", scale) : "",
                      check_sum("residual", residual), check_sum("y", *y),
                      is_given(*positive) ? operand.check_size("positive", *positive) : "",
                      check_extreme("low", *low), check_extreme("high", *high)});
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Rectified in{x.typed_data(), or_null(residual), or_null(mean), or_null(scale),
                       shift.typed_data()};
    const RectifiedSum out{y->typed_data(), or_null(*positive),
                           summed ? low->typed_data() : nullptr, high->typed_data()};
    rectified_operand(operand.shape, static_cast<int64_t>(operand.channels), in, operand.to, out,
                      kernels, executor);
  });
}

ffi::Error run_gradient(Floats g, Floats x, Floats scale, Floats offset, Floats slope, Floats mean,
                        Floats shift, ffi::Result<Mantissas> mantissas,
                        ffi::Result<Numbers> exponents, ffi::ThreadPool pool, std::string_view isa,
                        int64_t threads, int64_t bits, std::string_view rounding, Sizes view,
                        Sizes block) {
  Operand operand{};
  std::string error = describe(x, *mantissas, *exponents, bits, rounding, view, block, &operand);
  const bool rectified = is_given(mean) || is_given(shift);
  if (error.empty())
    error =
        first_of({operand.check_size("g", g), operand.check_channels("scale", scale),
                  operand.check_channels("offset", offset), operand.check_channels("slope", slope),
                  rectified ? operand.check_channels("mean", mean) : "",
                  rectified ? operand.check_channels("shift", shift) : ""});
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    const Gradient in{g.typed_data(),     x.typed_data(), scale.typed_data(), offset.typed_data(),
                      slope.typed_data(), or_null(mean),  or_null(shift)};
    gradient_operand(operand.shape, static_cast<int64_t>(operand.channels), in, operand.to, kernels,
                     executor);
  });
}

ffi::Error run_masked(Floats x, Truth positive, ffi::Result<Mantissas> mantissas,
                      ffi::Result<Numbers> exponents, ffi::ThreadPool pool, std::string_view isa,
                      int64_t threads, int64_t bits, std::string_view rounding, Sizes view,
                      Sizes block) {
  Operand operand{};
  std::string error = describe(x, *mantissas, *exponents, bits, rounding, view, block, &operand);
  if (error.empty()) error = operand.check_size("positive", positive);
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    masked_operand(operand.shape, x.typed_data(), positive.typed_data(), operand.to, kernels,
                   executor);
  });
}

ffi::Error run_pooled(Floats x, ffi::Result<Mantissas> mantissas, ffi::Result<Numbers> exponents,
                      ffi::Result<Floats> y, ffi::ThreadPool pool, std::string_view isa,
                      int64_t threads, int64_t bits, std::string_view rounding, Sizes view,
                      Sizes block, Sizes windows) {
  Operand operand{};
  std::string error = check_images(x, *mantissas, windows);
  if (error.empty())
    error = describe(*mantissas, *mantissas, *exponents, bits, rounding, view, block, &operand);
  if (error.empty() && is_given(*y) && y->element_count() != operand.size)
    error = must_be("y", "of the mantissas' size");
  return run(error, pool, isa, threads, [&](const PassKernels& kernels, Executor& executor) {
    pooled_operand(operand.shape, pool_of(x, *mantissas, windows), x.typed_data(), operand.to,
                   or_null(*y), kernels, executor);
  });
}

// Completes a binding of a pass with the attributes that describe an operand.
template <class Binding>
auto operand(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("bits")
      .template Attr<std::string_view>("rounding")
      .template Attr<Sizes>("view")
      .template Attr<Sizes>("block");
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(rectified_operand_v1, Guarded<run_rectified>::call,
                              operand(pass(ffi::Ffi::Bind()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Ret<Mantissas>()
                                               .Ret<Numbers>()
                                               .Ret<Floats>()
                                               .Ret<Truth>()
                                               .Ret<Floats>()
                                               .Ret<Floats>())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_operand_v1, Guarded<run_gradient>::call,
                              operand(pass(ffi::Ffi::Bind()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Arg<Floats>()
                                               .Ret<Mantissas>()
                                               .Ret<Numbers>())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    masked_operand_v1, Guarded<run_masked>::call,
    operand(pass(ffi::Ffi::Bind().Arg<Floats>().Arg<Truth>().Ret<Mantissas>().Ret<Numbers>())));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    pooled_operand_v1, Guarded<run_pooled>::call,
    operand(pass(ffi::Ffi::Bind().Arg<Floats>().Ret<Mantissas>().Ret<Numbers>().Ret<Floats>()))
        .Attr<Sizes>("windows"));

}  // namespace

Handlers operand_handlers() {
  return {{"dfpjax_rectified_operand_v1", rectified_operand_v1},
          {"dfpjax_gradient_operand_v1", gradient_operand_v1},
          {"dfpjax_masked_operand_v1", masked_operand_v1},
          {"dfpjax_pooled_operand_v1", pooled_operand_v1}};
}

}  // namespace dfpjax
