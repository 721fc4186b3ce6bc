// How a part is cut into tasks. It depends on the machine; the bits of the result do not.
#ifndef DFPJAX_CONTRACTION_BLOCKING_H_
#define DFPJAX_CONTRACTION_BLOCKING_H_

#include <cstdint>

namespace dfpjax {

// How A is brought to words of two k.
enum class Source { kInPlace, kAlongK, kAlongM };

struct Work {
  int64_t outer;          // groups times splits
  int64_t tiles, panels;  // of rows and columns
  int64_t k;              // of one split
  Source source;
  bool can_share_a;
};

// A task is a block of row tiles times a range of panels.
struct Blocking {
  int64_t row_blocks, panel_ranges;
  bool share_a;  // A is packed before the tasks begin, once for all ranges; B is if there are
                 // several row blocks
};

Blocking choose_blocking(const Work& work, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_BLOCKING_H_
