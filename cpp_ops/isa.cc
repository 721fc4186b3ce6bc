#include "isa.h"

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
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

Registry::Registry()
    : isas{
#if defined(__x86_64__)
          {{"avx512vnni", true, has_avx512() && __builtin_cpu_supports("avx512vnni")},
           &kAvx512VnniKernels},
          {{"avx512bw", true, has_avx512()}, &kAvx512BwKernels},
          {{"avxvnni", true, has_avx2() && __builtin_cpu_supports("avxvnni")}, &kAvxVnniKernels},
          {{"avx2", true, has_avx2()}, &kAvx2Kernels},
#else
          {{"avx512vnni", false, false}, nullptr},       {{"avx512bw", false, false}, nullptr},
          {{"avxvnni", false, false}, nullptr},          {{"avx2", false, false}, nullptr},
#endif
          {{"portable", true, true}, &kPortableKernels},
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
    *error = std::string("ISA path '") + name + "' cannot run on this CPU";
    return nullptr;
  }
  *error = std::string("unknown ISA path '") + name + "'; there are";
  for (const Isa& isa : registry().isas) *error += std::string(" ") + isa.info.name;
  return nullptr;
}

struct Default {
  const KernelTable* kernels = nullptr;
  std::string error;
  Default() {
    const char* name = std::getenv("DFPJAX_ISA");
    if (name != nullptr && *name != '\0') {
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

}  // namespace

const IsaInfo* all_isas() { return registry().infos; }

const KernelTable* find_isa(const char* name, std::string* error) {
  if (*name != '\0') return lookup(name, error);
  static const Default choice;
  if (choice.kernels == nullptr) *error = choice.error;
  return choice.kernels;
}

}  // namespace dfpjax
