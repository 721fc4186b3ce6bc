#include "blocking.h"

#include <algorithm>

#include "packing.h"
#include "plan.h"

namespace dfpjax {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kRowTiles = 16;           // enough to make use of a panel of B that was read
constexpr int64_t kBlockBytes = 512 << 10;  // a packed k-block of A and the sums it adds to
// Fewer row tiles than that waste more than idle threads do; below the first bound, tasks are made
// of fewer columns instead.
constexpr int64_t kFewRowTiles = 8, kMinRowTiles = 4;

}  // namespace

Blocking choose_blocking(const Work& w, int threads) {
  const int64_t target = threads == 1 ? 1 : kTasksPerThread * threads;
  // Interleaved rows are read in strips as wide as the row block, so wider is better.
  const int64_t tile_bytes =
      kTileRows * (kBlock * int64_t{sizeof(int16_t)} + w.columns * int64_t{sizeof(float)});
  // Short rows of A leave room for more of them.
  const int64_t short_tiles = kRowTiles * kBlock / std::clamp<int64_t>(w.k, kBlock / 4, kBlock);
  const int64_t tiles = w.interleaved ? std::max(kRowTiles, kBlockBytes / tile_bytes) : short_tiles;
  const int64_t most = ceil_div(w.tiles, kMinRowTiles);
  Blocking b{ceil_div(w.tiles, tiles), 1};
  if (w.outer * b.row_blocks < target) {
    b.row_blocks =
        std::clamp(ceil_div(target, w.outer), b.row_blocks, ceil_div(w.tiles, kFewRowTiles));
    b.panel_ranges = std::min(w.panels, ceil_div(target, w.outer * b.row_blocks));
    b.row_blocks = std::clamp(ceil_div(target, w.outer * b.panel_ranges), b.row_blocks, most);
  }
  // A few blocks more may leave fewer threads idle at the end.
  const auto time = [&](int64_t row_blocks) {
    const int64_t rounds = ceil_div(w.outer * row_blocks * b.panel_ranges, threads);
    return static_cast<double>(rounds) / static_cast<double>(row_blocks);
  };
  const int64_t last = std::min(b.row_blocks + threads - 1, most);
  for (int64_t more = b.row_blocks + 1; more <= last; ++more)
    if (time(more) < time(b.row_blocks)) b.row_blocks = more;
  return b;
}

}  // namespace dfpjax
