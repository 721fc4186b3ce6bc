// How a part is cut into tasks. It depends on the machine; the bits of the result do not.
#ifndef DFPJAX_BLOCKING_H_
#define DFPJAX_BLOCKING_H_

#include <cstdint>

namespace dfpjax {

struct Work {
  int64_t outer;          // groups times splits
  int64_t tiles, panels;  // of rows and columns
  int64_t columns;
  bool interleaved;  // rows of A are interleaved
  int64_t k;
};

struct Blocking {
  int64_t row_blocks, panel_ranges;
};

Blocking choose_blocking(const Work& work, int threads);

}  // namespace dfpjax

#endif  // DFPJAX_BLOCKING_H_
