// The Python module. Only the files beside this one know Python, as only the files in ffi/ know
// XLA.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "contraction/kept_operand.h"
#include "contraction/kernels/table.h"
#include "contraction/packed_b.h"
#include "ffi/support.h"
#include "isa/isa.h"
#include "runtime/scratch.h"

namespace nb = nanobind;

namespace dfpjax {
namespace {

nb::dict registrations() {
  nb::dict result;
  for (const Handlers& handlers :
       {contraction_handlers(), panel_handlers(), pass_handlers(), operand_handlers()})
    for (const Handler& handler : handlers) {
      nb::dict stages;
      stages["execute"] = nb::capsule(reinterpret_cast<void*>(handler.execute));
      if (handler.instantiate != nullptr)
        stages["instantiate"] = nb::capsule(reinterpret_cast<void*>(handler.instantiate));
      result[handler.name] = stages;
    }
  return result;
}

Isa isa_or_raise(const std::string& name) {
  std::string error;
  const std::optional<Isa> isa = find_isa(name.c_str(), &error);
  if (!isa) throw nb::value_error(error.c_str());
  return *isa;
}

const char* name_of(Isa isa) { return all_isas()[static_cast<int>(isa)].name; }

nb::list isas() {
  nb::list result;
  for (int i = 0; i < kIsaCount; ++i) {
    const IsaInfo& isa = all_isas()[i];
    result.append(nb::make_tuple(isa.name, isa.why_not));
  }
  return result;
}

// Pins this thread to the i-th of the cores that it may use. A scheduler may leave two threads on
// one core for seconds, which would halve the measured speed.
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

// Billions of multiply-adds per second that `threads` threads reach together; the best of a few
// runs.
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

nb::dict measure_peak(int threads, const std::string& name) {
  const Isa isa = isa_or_raise(name);
  const ContractionKernels& kernels = contraction_kernels(isa);
  if (threads < 1) throw nb::value_error("threads must be positive");
  nb::dict result;
  result["isa"] = name_of(isa);
  result["int16_dot"] = peak(kernels.peak_dot, threads);
  result["f32_fma"] = peak(kernels.peak_fma, threads);
  return result;
}

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of dfpjax.";
  m.def("registrations", &registrations, "XLA FFI targets: a dict of name to capsules by stage.");
  m.def(
      "isa", [] { return std::string(name_of(isa_or_raise(""))); },
      "The name of the instruction-set path in use. Raises ValueError if DFPJAX_ISA is wrong.");
  m.def("isa_asked_for", &isa_asked_for, "Whether DFPJAX_ISA asked for the path in use.");
  m.def("isas", &isas,
        "All paths, best first, as tuples (name, why it cannot run or an empty string).");
  m.def(
      "release_scratch",
      [] {
        release_kept_operands();  // whose memory becomes scratch
        release_scratch();
      },
      "Frees the scratch memory and the prepared operands kept between calls.");
  m.def("scratch_bytes", &scratch_bytes, "Bytes of scratch memory kept between calls.");
  m.def("kept_operand_bytes", &kept_operand_bytes,
        "Bytes of prepared operands, packed or transformed, kept between calls.");
  m.attr("panel_info_bytes") = sizeof(PanelsInBlocks);  // of a panel in a block of k
  m.def("measure_peak", &measure_peak, nb::arg("threads") = 1, nb::arg("isa") = "",
        "Peak GMAC/s of the path's int16 dot product and of f32 FMA, on registers alone.");
}

}  // namespace
}  // namespace dfpjax
