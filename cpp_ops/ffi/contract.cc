// The XLA handlers of contractions.
#include "contraction/contract.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contraction/kept_operand.h"
#include "contraction/kernels/table.h"
#include "ffi/support.h"
#include "isa/isa.h"
#include "plan/plan.h"

namespace dfpjax {
namespace {

// What XLA holds for each call of contract_v1 in an executable, as long as the executable lives.
struct CallSite {
  static ffi::TypeId id;
  KeptOperand b;
};
ffi::TypeId CallSite::id{};

// Stands for the CallSite, or null where the host has none.
struct OptionalCallSite {};

}  // namespace
}  // namespace dfpjax

template <>
struct xla::ffi::CtxDecoding<dfpjax::OptionalCallSite> {
  using Type = dfpjax::CallSite*;
  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                                    DiagnosticEngine&) {
    DiagnosticEngine unused;
    return CtxDecoding<State<dfpjax::CallSite>>::Decode(api, context, unused).value_or(nullptr);
  }
};

namespace dfpjax {
namespace {

int chain_length(Arguments* arguments) {
  const auto length = arguments->attribute<int64_t>("chain");
  if (length >= 2 && length <= kBlock && (length & (length - 1)) == 0)
    return static_cast<int>(length);
  arguments->complain("chain: must be a power of two from 2 to " + std::to_string(kBlock));
  return 2;
}

// The common part of all handlers. `saturated` is null for certified chains; `lengths` is null
// unless the chain lengths are requested; `site` may be null.
ffi::Error run(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
               ffi::Result<ffi::AnyBuffer> c, const ffi::AnyBuffer* saturated,
               const ffi::AnyBuffer* lengths, CallSite* site, ffi::ThreadPool pool,
               ffi::Dictionary attributes) {
  Arguments arguments(attributes);
  // Instead of a plan, a call may have a contraction, whose lhs is a and whose rhs is b.
  std::shared_ptr<const FoundPlan> found;
  if (attributes.contains("contraction")) {
    found = find_plan(arguments.attribute<std::string_view>("contraction"),
                      {shape_of(a), shape_of(ea), shape_of(b), shape_of(eb), shape_of(*c)});
    if (found->swapped) std::swap(a, b), std::swap(ea, eb);
  }
  const Operands operands{arguments.buffer<ffi::S16>("a", a), arguments.buffer<ffi::S16>("b", b),
                          arguments.buffer<ffi::S32>("ea", ea),
                          arguments.buffer<ffi::S32>("eb", eb),
                          arguments.buffer<ffi::F32>("c", *c)};
  const auto plan = found != nullptr
                        ? ffi::Span<const int64_t>(found->code.data(), found->code.size())
                        : arguments.attribute<ffi::Span<const int64_t>>("plan");
  const std::string isa(arguments.attribute<std::string_view>("isa"));
  const auto threads = arguments.attribute<int64_t>("threads");
  Chains chains;
  int32_t* counts = nullptr;
  if (saturated != nullptr) {
    chains.length = chain_length(&arguments);
    chains.bounded = arguments.attribute<bool>("bounded");
    counts = arguments.buffer<ffi::S32>("saturated", *saturated);
    if (attributes.size() > 5)
      arguments.complain("there is an attribute beside plan, chain, bounded, isa, threads");
  } else if (attributes.size() > 3) {
    arguments.complain("there is an attribute beside plan, isa, threads");
  }
  float* const shares =
      lengths != nullptr ? arguments.buffer<ffi::F32>("lengths", *lengths) : nullptr;
  if (threads < 0) arguments.complain("threads: must not be negative");
  arguments.complain(check_alignment(operands.a, operands.b, operands.c, operands.ea, operands.eb));
  std::string error;
  const std::optional<Isa> path = find_isa(isa.c_str(), &error);
  if (!path) arguments.complain("isa: " + error);
  const auto size = [](const auto& buffer) { return static_cast<int64_t>(buffer.element_count()); };
  const BufferSizes sizes{size(a), size(b), size(*c), size(ea), size(eb)};
  std::vector<Part> parts;
  arguments.complain(decode_plan(plan.begin(), static_cast<int64_t>(plan.size()), sizes, &parts));
  Counts saturations(saturated != nullptr ? size(*saturated) : 0, 1);
  if (saturated != nullptr && !saturations.fits(parts))
    arguments.complain("saturated: must have as many elements as there are examples in G");
  if (saturated != nullptr &&
      std::any_of(parts.begin(), parts.end(), [](const Part& part) { return part.tile > 0; }))
    arguments.complain("plan: Winograd parts take certified chains alone");
  Counts macs(lengths != nullptr ? size(*lengths) / kChainLengths : 0, kChainLengths);
  if (lengths != nullptr && (size(*lengths) % kChainLengths != 0 || !macs.fits(parts)))
    arguments.complain("lengths: must have " + std::to_string(kChainLengths) +
                       " elements for each of the examples in G");
  if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
  chains.saturated = &saturations;
  if (lengths != nullptr) chains.lengths = &macs;
  XlaExecutor executor(&pool, threads);
  OperandReuse reuse(site != nullptr ? &site->b : nullptr, operands.b, sizes.b, operands.eb,
                     sizes.eb);
  run_plan(parts, operands, chains, contraction_kernels(*path), executor, &reuse);
  if (counts != nullptr) saturations.write(counts);
  if (shares != nullptr) macs.write_shares(shares);
  return ffi::Error::Success();
}

ffi::Error contract(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                    ffi::Result<ffi::AnyBuffer> c, CallSite* site, ffi::ThreadPool pool,
                    ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, nullptr, nullptr, site, pool, attributes);
}

ffi::Error fixed_chain(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                       ffi::Result<ffi::AnyBuffer> c, ffi::Result<ffi::AnyBuffer> saturated,
                       ffi::ThreadPool pool, ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, &*saturated, nullptr, nullptr, pool, attributes);
}

ffi::Error chain_lengths(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                         ffi::Result<ffi::AnyBuffer> c, ffi::Result<ffi::AnyBuffer> lengths,
                         ffi::ThreadPool pool, ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, nullptr, &*lengths, nullptr, pool, attributes);
}

// The operands and the first result of every contraction; `complete` adds the rest.
auto contraction() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>();
}

template <class Binding>
auto complete(Binding binding) {
  return std::move(binding).template Ctx<ffi::ThreadPool>().Attrs();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(contract_v1, Guarded<contract>::call,
                              complete(contraction().Ctx<OptionalCallSite>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(fixed_chain_v1, Guarded<fixed_chain>::call,
                              complete(contraction().Ret<ffi::AnyBuffer>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(chain_lengths_v1, Guarded<chain_lengths>::call,
                              complete(contraction().Ret<ffi::AnyBuffer>()));

ffi::ErrorOr<std::unique_ptr<CallSite>> make_call_site(ffi::Dictionary) noexcept {
  try {
    return std::make_unique<CallSite>();
  } catch (...) {
    return ffi::Unexpected(error_of(std::current_exception()));
  }
}

XLA_FFI_DEFINE_HANDLER(make_call_site_v1, make_call_site, ffi::Ffi::BindInstantiate().Attrs());

// XLA takes the handler only when the type of the state is registered. jax.ffi registers types
// after handlers, so this does it in the first call, in which XLA asks the handler about itself.
XLA_FFI_Error* instantiate_contract_v1(XLA_FFI_CallFrame* frame) {
  static const XLA_FFI_TypeInfo info = ffi::MakeTypeInfo<CallSite>();
  static XLA_FFI_Error* error =
      ffi::Ffi::RegisterTypeId(frame->api, "dfpjax_call_site", &CallSite::id, &info);
  return error != nullptr ? std::exchange(error, nullptr) : make_call_site_v1(frame);
}

}  // namespace

Handlers contraction_handlers() {
  return {{"dfpjax_contract_v1", contract_v1, instantiate_contract_v1},
          {"dfpjax_fixed_chain_v1", fixed_chain_v1},
          {"dfpjax_chain_lengths_v1", chain_lengths_v1}};
}

}  // namespace dfpjax
