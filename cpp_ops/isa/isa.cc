#include "isa/isa.h"

#include <cstdlib>
#include <cstring>

namespace dfpjax {
namespace {

#if defined(__x86_64__)
// The compiler's CPU detection also checks that the operating system supports the registers.
#define DFPJAX_LACKS(feature, words) (__builtin_cpu_supports(feature) ? "" : ", " words)

std::string lacks_avx2() {
  return std::string(DFPJAX_LACKS("avx2", "AVX2")) + DFPJAX_LACKS("fma", "FMA");
}
std::string lacks_avx512() {
  return lacks_avx2() + DFPJAX_LACKS("avx512f", "AVX-512F") +
         DFPJAX_LACKS("avx512bw", "AVX-512BW") + DFPJAX_LACKS("avx512dq", "AVX-512DQ") +
         DFPJAX_LACKS("avx512vl", "AVX-512VL");
}

// `lacks` lists what is missing, each item after a comma.
IsaInfo info(const char* name, const std::string& lacks) {
  if (lacks.empty()) return {name, true, ""};
  return {name, false, "this CPU has no " + lacks.substr(2)};
}
#else
IsaInfo info(const char* name) { return {name, false, "this build is for another architecture"}; }
#endif

struct Registry {
  IsaInfo infos[kIsaCount] = {
#if defined(__x86_64__)
      info("avx512vnni", lacks_avx512() + DFPJAX_LACKS("avx512vnni", "AVX-512 VNNI")),
      info("avx512bw", lacks_avx512()),
#if defined(DFPJAX_HAVE_AVXVNNI)
      info("avxvnni", lacks_avx2() + DFPJAX_LACKS("avxvnni", "AVX-VNNI")),
#else
      {"avxvnni", false, "the compiler of this build does not know AVX-VNNI"},
#endif
      info("avx2", lacks_avx2()),
#else
      info("avx512vnni"),     info("avx512bw"), info("avxvnni"), info("avx2"),
#endif
      {"portable", true, ""},
  };
};

std::optional<Isa> lookup(const char* name, std::string* error) {
  for (int i = 0; i < kIsaCount; ++i) {
    const IsaInfo& isa = all_isas()[i];
    if (std::strcmp(isa.name, name) != 0) continue;
    if (isa.usable) return static_cast<Isa>(i);
    *error = std::string("ISA path '") + name + "' cannot run: " + isa.why_not;
    return std::nullopt;
  }
  *error = std::string("unknown ISA path '") + name + "'; there are";
  for (int i = 0; i < kIsaCount; ++i) *error += std::string(" ") + all_isas()[i].name;
  return std::nullopt;
}

struct Default {
  std::optional<Isa> isa;
  std::string error;
  bool asked_for = false;
  Default() {
    const char* name = std::getenv("DFPJAX_ISA");
    if (name != nullptr && *name != '\0') {
      asked_for = true;
      isa = lookup(name, &error);
      if (!isa) error = "DFPJAX_ISA: " + error;
      return;
    }
    int best = 0;
    while (!all_isas()[best].usable) ++best;  // the last one is always usable
    isa = static_cast<Isa>(best);
  }
};

const Default& default_isa() {
  static const Default choice;
  return choice;
}

}  // namespace

const IsaInfo* all_isas() {
  static const Registry instance;
  return instance.infos;
}

std::optional<Isa> find_isa(const char* name, std::string* error) {
  if (*name != '\0') return lookup(name, error);
  const Default& choice = default_isa();
  if (!choice.isa) *error = choice.error;
  return choice.isa;
}

bool isa_asked_for() { return default_isa().asked_for; }

}  // namespace dfpjax
