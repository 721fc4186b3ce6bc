// The XLA handlers of an operand that is packed once: packing, and contractions with it.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contraction/contract.h"
#include "contraction/kernels/table.h"
#include "contraction/packed_b.h"
#include "ffi/support.h"
#include "isa/isa.h"
#include "plan/plan.h"

namespace dfpjax {
namespace {

// What both handlers take from their attributes.
struct Call {
  std::vector<Part> parts;
  std::optional<Isa> path;
  int64_t threads;
};

// `absent` are the sizes of the plan's buffers that the handler does not have and does not read.
// The attribute of this name has them.
Call decode(const BufferSizes& sizes, const std::vector<int64_t*>& absent, Arguments* arguments,
            const ffi::Dictionary& attributes, const FoundPlan* found = nullptr) {
  Call call;
  const auto given = arguments->attribute<ffi::Span<const int64_t>>("absent");
  if (given.size() != absent.size()) {
    arguments->complain("absent: must have " + std::to_string(absent.size()) + " sizes");
    return call;
  }
  for (size_t i = 0; i < absent.size(); ++i) *absent[i] = given[i];
  const auto plan = found != nullptr
                        ? ffi::Span<const int64_t>(found->code.data(), found->code.size())
                        : arguments->attribute<ffi::Span<const int64_t>>("plan");
  const std::string isa(arguments->attribute<std::string_view>("isa"));
  call.threads = arguments->attribute<int64_t>("threads");
  if (attributes.size() > 4)
    arguments->complain("there is an attribute beside plan, absent, isa, threads");
  if (call.threads < 0) arguments->complain("threads: must not be negative");
  std::string error;
  call.path = find_isa(isa.c_str(), &error);
  if (!call.path) arguments->complain("isa: " + error);
  arguments->complain(
      decode_plan(plan.begin(), static_cast<int64_t>(plan.size()), sizes, &call.parts));
  if (!arguments->error().empty()) return call;
  if (call.parts.size() != 1 || call.parts[0].mode != Mode::kTiles || !call.parts[0].in_blocks ||
      call.parts[0].K == 0)
    arguments->complain("plan: must have one part of mode tiles, in blocks, that sums something");
  return call;
}

// Words and segments as the packed operand of a part.
struct Memory {
  int32_t* words;
  PanelsInBlocks* segments;
};
Memory memory_of(ffi::AnyBuffer words, ffi::AnyBuffer info, const Part& part,
                 Arguments* arguments) {
  auto* const halves = arguments->buffer<ffi::S16>("words", words);
  auto* const bytes = arguments->buffer<ffi::U8>("info", info);
  const PackedB::Size size = PackedB::size_of(part);
  if (static_cast<int64_t>(words.element_count()) != 2 * size.words)
    arguments->complain("words: must have " + std::to_string(2 * size.words) + " elements");
  if (static_cast<int64_t>(info.element_count()) !=
      size.segments * static_cast<int64_t>(sizeof(PanelsInBlocks)))
    arguments->complain("info: must have " + std::to_string(sizeof(PanelsInBlocks)) +
                        " bytes for each panel and block of k");
  if (reinterpret_cast<uintptr_t>(halves) % alignof(int32_t) != 0 ||
      reinterpret_cast<uintptr_t>(bytes) % alignof(PanelsInBlocks) != 0)
    arguments->complain("words, info: must be aligned to " +
                        std::to_string(alignof(PanelsInBlocks)) + " bytes");
  return {reinterpret_cast<int32_t*>(halves), reinterpret_cast<PanelsInBlocks*>(bytes)};
}

ffi::Error pack_panels(ffi::AnyBuffer b, ffi::AnyBuffer eb, ffi::Result<ffi::AnyBuffer> words,
                       ffi::Result<ffi::AnyBuffer> info, ffi::ThreadPool pool,
                       ffi::Dictionary attributes) {
  Arguments arguments(attributes);
  const auto* const from = arguments.buffer<ffi::S16>("b", b);
  const auto* const exponents = arguments.buffer<ffi::S32>("eb", eb);
  BufferSizes sizes{0, static_cast<int64_t>(b.element_count()), 0, 0,
                    static_cast<int64_t>(eb.element_count())};
  const Call call = decode(sizes, {&sizes.a, &sizes.c, &sizes.ea}, &arguments, attributes);
  if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
  const Part& part = call.parts[0];
  const Memory to = memory_of(*words, *info, part, &arguments);
  if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
  // Packing leaves out what pads the last blocks.
  const PackedB::Size size = PackedB::size_of(part);
  std::fill_n(to.words, size.words, 0);
  std::memset(static_cast<void*>(to.segments), 0,
              static_cast<size_t>(size.segments) * sizeof(PanelsInBlocks));
  const PackerB packer(part, from, exponents, contraction_kernels(*call.path), /*norms=*/true);
  PackedB packed(part, to.words, to.segments);
  XlaExecutor executor(&pool, call.threads);
  run_stages(executor, {{{packed.packs(), 1, [&](int, int64_t low, int64_t high) {
                            PackingSpace space(0, 1);
                            for (int64_t i = low; i < high; ++i) packed.pack(packer, i, &space);
                          }}}});
  return ffi::Error::Success();
}

ffi::Error contract_panels(ffi::AnyBuffer a, ffi::AnyBuffer words, ffi::AnyBuffer info,
                           ffi::AnyBuffer ea, ffi::Result<ffi::AnyBuffer> c, ffi::ThreadPool pool,
                           ffi::Dictionary attributes) {
  Arguments arguments(attributes);
  Operands operands{arguments.buffer<ffi::S16>("a", a), nullptr,
                    arguments.buffer<ffi::S32>("ea", ea), nullptr,
                    arguments.buffer<ffi::F32>("c", *c)};
  const auto size = [](const auto& buffer) { return static_cast<int64_t>(buffer.element_count()); };
  BufferSizes sizes{size(a), 0, size(*c), size(ea), 0};
  // Instead of a plan, a call may have a contraction, which says the shapes of rhs.
  std::shared_ptr<const FoundPlan> found;
  if (attributes.contains("contraction")) {
    found = find_plan(arguments.attribute<std::string_view>("contraction"),
                      {shape_of(a), shape_of(ea), shape_of(*c)});
    if (found->swapped) arguments.complain("contraction: its rhs must be the plan's B");
  }
  const Call call = decode(sizes, {&sizes.b, &sizes.eb}, &arguments, attributes, found.get());
  arguments.complain(check_alignment(operands.a, nullptr, operands.c, operands.ea, nullptr));
  if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
  const Memory from = memory_of(words, info, call.parts[0], &arguments);
  if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
  operands.packed = std::make_shared<PackedB>(call.parts[0], from.words, from.segments);
  XlaExecutor executor(&pool, call.threads);
  run_plan(call.parts, operands, Chains(), contraction_kernels(*call.path), executor);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(pack_panels_v1, Guarded<pack_panels>::call,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attrs());
XLA_FFI_DEFINE_HANDLER_SYMBOL(contract_panels_v1, Guarded<contract_panels>::call,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attrs());

}  // namespace

Handlers panel_handlers() {
  return {{"dfpjax_pack_panels_v1", pack_panels_v1},
          {"dfpjax_contract_panels_v1", contract_panels_v1}};
}

}  // namespace dfpjax
