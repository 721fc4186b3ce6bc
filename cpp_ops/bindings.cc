// The Python module and the XLA handler; the only file that knows of either.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "contract.h"
#include "isa.h"
#include "parallel.h"
#include "plan.h"
#include "scratch.h"
#include "xla/ffi/api/ffi.h"

namespace nb = nanobind;
namespace ffi = xla::ffi;

namespace dfpjax {
namespace {

// XLA's own pool, so that the machine is not oversubscribed.
class XlaExecutor : public Executor {
 public:
  XlaExecutor(ffi::ThreadPool* pool, int64_t limit)
      : pool_(pool), threads_(static_cast<int>(std::max<int64_t>(1, pool->num_threads()))) {
    if (limit > 0 && limit < threads_) threads_ = static_cast<int>(limit);
  }
  int threads() const override { return threads_; }
  void schedule(std::function<void()> task) override { pool_->Schedule(std::move(task)); }

 private:
  ffi::ThreadPool* pool_;
  int threads_;
};

// Takes the handler's arguments one by one and keeps what is wrong with the first bad one. XLA
// would check types itself, but name an argument by its number.
class Arguments {
 public:
  explicit Arguments(ffi::Dictionary attributes) : attributes_(attributes) {}

  template <ffi::DataType type>
  ffi::NativeType<type>* buffer(const char* name, const ffi::AnyBuffer& buffer) {
    if (buffer.element_type() == type) return buffer.typed_data<ffi::NativeType<type>>();
    std::ostringstream what;
    what << name << ": must have elements of type " << static_cast<XLA_FFI_DataType>(type)
         << ", not " << static_cast<XLA_FFI_DataType>(buffer.element_type());
    complain(what.str());
    return nullptr;
  }

  template <typename T>
  T attribute(const char* name) {
    ffi::ErrorOr<T> value = attributes_.get<T>(name);
    if (value.has_value()) return value.value();
    complain(std::string(name) + ": " +
             (attributes_.contains(name) ? value.error().message() : "is missing"));
    return T();
  }

  void complain(const std::string& what) {
    if (error_.empty()) error_ = what;
  }
  const std::string& error() const { return error_; }

 private:
  ffi::Dictionary attributes_;
  std::string error_;
};

int chain_length(Arguments* arguments) {
  const auto length = arguments->attribute<int64_t>("chain");
  if (length >= 2 && length <= kBlock && (length & (length - 1)) == 0)
    return static_cast<int>(length);
  arguments->complain("chain: must be a power of two from 2 to " + std::to_string(kBlock));
  return 2;
}

// What all handlers do. `saturated` is null for certified chains, `lengths` where their lengths are
// not asked for.
ffi::Error run(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
               ffi::Result<ffi::AnyBuffer> c, const ffi::AnyBuffer* saturated,
               const ffi::AnyBuffer* lengths, ffi::ThreadPool pool, ffi::Dictionary attributes) {
  try {
    Arguments arguments(attributes);
    const Operands operands{arguments.buffer<ffi::S16>("a", a), arguments.buffer<ffi::S16>("b", b),
                            arguments.buffer<ffi::S32>("ea", ea),
                            arguments.buffer<ffi::S32>("eb", eb),
                            arguments.buffer<ffi::F32>("c", *c)};
    const auto plan = arguments.attribute<ffi::Span<const int64_t>>("plan");
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
    arguments.complain(
        check_alignment(operands.a, operands.b, operands.c, operands.ea, operands.eb));
    std::string error;
    const KernelTable* kernels = find_isa(isa.c_str(), &error);
    if (kernels == nullptr) arguments.complain("isa: " + error);
    const auto size = [](const auto& buffer) {
      return static_cast<int64_t>(buffer.element_count());
    };
    const BufferSizes sizes{size(a), size(b), size(*c), size(ea), size(eb)};
    std::vector<Part> parts;
    arguments.complain(decode_plan(plan.begin(), static_cast<int64_t>(plan.size()), sizes, &parts));
    Counts saturations(saturated != nullptr ? size(*saturated) : 0, 1);
    if (saturated != nullptr && !saturations.fits(parts))
      arguments.complain("saturated: must have as many elements as there are examples in G");
    Counts macs(lengths != nullptr ? size(*lengths) / kChainLengths : 0, kChainLengths);
    if (lengths != nullptr && (size(*lengths) % kChainLengths != 0 || !macs.fits(parts)))
      arguments.complain("lengths: must have " + std::to_string(kChainLengths) +
                         " elements for each of the examples in G");
    if (!arguments.error().empty()) return ffi::Error::InvalidArgument(arguments.error());
    chains.saturated = &saturations;
    if (lengths != nullptr) chains.lengths = &macs;
    XlaExecutor executor(&pool, threads);
    if (!run_plan(parts, operands, chains, *kernels, executor))
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory for scratch space");
    if (counts != nullptr) saturations.write(counts);
    if (shares != nullptr) macs.write_shares(shares);
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  }
}

ffi::Error contract(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                    ffi::Result<ffi::AnyBuffer> c, ffi::ThreadPool pool,
                    ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, nullptr, nullptr, pool, attributes);
}

ffi::Error fixed_chain(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                       ffi::Result<ffi::AnyBuffer> c, ffi::Result<ffi::AnyBuffer> saturated,
                       ffi::ThreadPool pool, ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, &*saturated, nullptr, pool, attributes);
}

ffi::Error chain_lengths(ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer ea, ffi::AnyBuffer eb,
                         ffi::Result<ffi::AnyBuffer> c, ffi::Result<ffi::AnyBuffer> lengths,
                         ffi::ThreadPool pool, ffi::Dictionary attributes) {
  return run(a, b, ea, eb, c, nullptr, &*lengths, pool, attributes);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(contract_v1, contract,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(fixed_chain_v1, fixed_chain,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(chain_lengths_v1, chain_lengths,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attrs());

nb::dict registrations() {
  nb::dict result;
  result["dfpjax_contract_v1"] = nb::capsule(reinterpret_cast<void*>(contract_v1));
  result["dfpjax_fixed_chain_v1"] = nb::capsule(reinterpret_cast<void*>(fixed_chain_v1));
  result["dfpjax_chain_lengths_v1"] = nb::capsule(reinterpret_cast<void*>(chain_lengths_v1));
  return result;
}

const KernelTable& kernels_or_raise(const std::string& name) {
  std::string error;
  const KernelTable* kernels = find_isa(name.c_str(), &error);
  if (kernels == nullptr) throw nb::value_error(error.c_str());
  return *kernels;
}

nb::list isas() {
  nb::list result;
  for (int i = 0; i < kIsaCount; ++i) {
    const IsaInfo& isa = all_isas()[i];
    result.append(nb::make_tuple(isa.name, isa.why_not));
  }
  return result;
}

// Keeps this thread on the i-th of the cores that it may use: two threads on one core, which a
// scheduler may leave there for seconds, would halve what is measured.
void pin_to_core(int i) {
#if defined(__linux__)
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return;
  int left = i % std::max(CPU_COUNT(&usable), 1);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &usable) || left-- > 0) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(core, &own);
    sched_setaffinity(0, sizeof own, &own);
    return;
  }
#else
  static_cast<void>(i);
#endif
}

// Billions of multiply-adds per second that `threads` threads reach together, best of a few runs.
double peak(int64_t (*loop)(int64_t), int threads) {
  constexpr int64_t kIterations = 10'000'000;
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<int64_t> done(static_cast<size_t>(threads));
    std::vector<std::thread> workers;
    for (int64_t& d : done)
      workers.emplace_back([&, i = static_cast<int>(workers.size())] {
        pin_to_core(i);
        d = loop(kIterations);
      });
    for (std::thread& w : workers) w.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    double total = 0;
    for (int64_t d : done) total += static_cast<double>(d);
    best = std::max(best, total / seconds.count() / 1e9);
  }
  return best;
}

nb::dict measure_peak(int threads, const std::string& isa) {
  const KernelTable& kernels = kernels_or_raise(isa);
  if (threads < 1) throw nb::value_error("threads must be positive");
  nb::dict result;
  result["isa"] = kernels.name;
  result["int16_dot"] = peak(kernels.peak_dot, threads);
  result["f32_fma"] = peak(kernels.peak_fma, threads);
  return result;
}

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of dfpjax.";
  m.def("registrations", &registrations, "XLA FFI targets: a dict of name to capsule.");
  m.def(
      "isa", [] { return std::string(kernels_or_raise("").name); },
      "The name of the instruction-set path in use. Raises ValueError if DFPJAX_ISA is wrong.");
  m.def("isa_asked_for", &isa_asked_for, "Whether DFPJAX_ISA asked for the path in use.");
  m.def("isas", &isas,
        "All paths, best first, as tuples (name, why it cannot run or an empty string).");
  m.def("release_scratch", &release_scratch, "Frees the scratch memory kept between calls.");
  m.def("scratch_bytes", &scratch_bytes, "Bytes of scratch memory kept between calls.");
  m.def("measure_peak", &measure_peak, nb::arg("threads") = 1, nb::arg("isa") = "",
        "Peak GMAC/s of the path's int16 dot product and of f32 FMA, on registers alone.");
}

}  // namespace
}  // namespace dfpjax
