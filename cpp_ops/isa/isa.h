// The instruction-set paths, and the choice of one.
#ifndef DFPJAX_ISA_ISA_H_
#define DFPJAX_ISA_ISA_H_

#include <optional>
#include <string>

namespace dfpjax {

// Best first.
enum class Isa : int { kAvx512Vnni, kAvx512Bw, kAvxVnni, kAvx2, kPortable };
inline constexpr int kIsaCount = 5;

struct IsaInfo {
  const char* name;
  bool usable;
  std::string why_not;  // in words; empty if usable
};

// All paths, in the order of `Isa`.
const IsaInfo* all_isas();

// Returns the path with this name. An empty name means the path that DFPJAX_ISA names or, without
// DFPJAX_ISA, the best usable one. If there is no such path or it is not usable, returns nothing
// and says why.
std::optional<Isa> find_isa(const char* name, std::string* error);

// Whether DFPJAX_ISA determines the path that an empty name means.
bool isa_asked_for();

}  // namespace dfpjax

#endif  // DFPJAX_ISA_ISA_H_
