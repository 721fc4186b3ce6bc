// Cuts a part into tasks. The cut depends on the machine; the bits of the result do not.
#ifndef DFPJAX_CONTRACTION_BLOCKING_H_
#define DFPJAX_CONTRACTION_BLOCKING_H_

#include <cstdint>

#include "plan/plan.h"

namespace dfpjax {

// The source of the words of A (two k each): the operand in place, or packing along k or m.
enum class Source { kInPlace, kAlongK, kAlongM };

struct Work {
  int64_t outer;          // groups times splits
  int64_t tiles, panels;  // of rows and columns
  int64_t k;              // of one split
  Source source;
  bool can_share_a;
  bool b_is_shared = false;  // packed for all tasks, whatever the blocking
};

// An operand with more bytes is not packed once for all tasks, since reading it back from memory
// costs as much as packing it again.
inline constexpr int64_t kMostSharedBytes = int64_t{1} << 30;

// A task is a block of row tiles times a range of panels.
struct Blocking {
  int64_t row_blocks, panel_ranges;
  bool share_a, share_b;  // pack them before the tasks begin, once for all of them
};

Blocking choose_blocking(const Work& work, int threads);

// Whether it is worth while to keep packed B for later calls. With one exponent it is not: packing
// reads B once, and reuse reads B, its copy and packed B, all from memory if calls are far apart.
bool worth_keeping(const Part& part);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_BLOCKING_H_
