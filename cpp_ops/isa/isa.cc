#include "isa/isa.h"

#include <cstdlib>
#include <cstring>

namespace dfpjax {

#if defined(__x86_64__)
extern const KernelTable kAvx512VnniKernels, kAvx512BwKernels, kAvxVnniKernels, kAvx2Kernels;
#endif
extern const KernelTable kPortableKernels;

namespace {

struct Isa {
  IsaInfo info;
  const KernelTable* kernels;
};

struct Registry {
  Isa isas[kIsaCount];
  IsaInfo infos[kIsaCount];
  Registry();
};

#if defined(__x86_64__)
// The compiler's CPU detection covers the operating system's support of the registers as well.
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
Isa path(const char* name, const KernelTable& kernels, const std::string& lacks) {
  if (lacks.empty()) return {{name, true, ""}, &kernels};
  return {{name, false, "this CPU has no " + lacks.substr(2)}, nullptr};
}
#else
Isa path(const char* name) {
  return {{name, false, "this build is for another architecture"}, nullptr};
}
#endif

Registry::Registry()
    : isas{
#if defined(__x86_64__)
          path("avx512vnni", kAvx512VnniKernels,
               lacks_avx512() + DFPJAX_LACKS("avx512vnni", "AVX-512 VNNI")),
          path("avx512bw", kAvx512BwKernels, lacks_avx512()),
          path("avxvnni", kAvxVnniKernels, lacks_avx2() + DFPJAX_LACKS("avxvnni", "AVX-VNNI")),
          path("avx2", kAvx2Kernels, lacks_avx2()),
#else
          path("avx512vnni"),
          path("avx512bw"),
          path("avxvnni"),
          path("avx2"),
#endif
          {{"portable", true, ""}, &kPortableKernels},
      } {
  for (int i = 0; i < kIsaCount; ++i) infos[i] = isas[i].info;
}

const Registry& registry() {
  static const Registry instance;
  return instance;
}

const KernelTable* lookup(const char* name, std::string* error) {
  for (const Isa& isa : registry().isas) {
    if (std::strcmp(isa.info.name, name) != 0) continue;
    if (isa.info.usable) return isa.kernels;
    *error = std::string("ISA path '") + name + "' cannot run: " + isa.info.why_not;
    return nullptr;
  }
  *error = std::string("unknown ISA path '") + name + "'; there are";
  for (const Isa& isa : registry().isas) *error += std::string(" ") + isa.info.name;
  return nullptr;
}

struct Default {
  const KernelTable* kernels = nullptr;
  std::string error;
  bool asked_for = false;
  Default() {
    const char* name = std::getenv("DFPJAX_ISA");
    if (name != nullptr && *name != '\0') {
      asked_for = true;
      kernels = lookup(name, &error);
      if (kernels == nullptr) error = "DFPJAX_ISA: " + error;
      return;
    }
    for (const Isa& isa : registry().isas) {
      if (!isa.info.usable) continue;
      kernels = isa.kernels;
      return;
    }
  }
};

const Default& default_isa() {
  static const Default choice;
  return choice;
}

}  // namespace

const IsaInfo* all_isas() { return registry().infos; }

const KernelTable* find_isa(const char* name, std::string* error) {
  if (*name != '\0') return lookup(name, error);
  const Default& choice = default_isa();
  if (choice.kernels == nullptr) *error = choice.error;
  return choice.kernels;
}

bool isa_asked_for() { return default_isa().asked_for; }

}  // namespace dfpjax
