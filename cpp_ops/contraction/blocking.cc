#include "contraction/blocking.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "contraction/packing.h"
#include "plan/plan.h"

namespace dfpjax {
namespace {

// Times in units of a cell (6 rows, 64 columns, 256 products), measured on one core of a Zen 4.
constexpr double kPackTile[] = {0.1, 0.2, 0.2};  // by source; norms included
constexpr double kPackStrip = 1.5;               // of interleaved rows, however narrow
constexpr double kPackPanel = 1.3;
constexpr double kReadTile[] = {0.05, 0.2};  // of a shared A, from the third level or memory
constexpr double kReadPanel[] = {0.5, 1.5};  // of a shared B
constexpr double kStart = 0.5;               // of a task, with its end
constexpr double kBarrier = 20;              // between two stages

constexpr int64_t kCachedBytes = int64_t{8} << 20;  // a shared B that stays in the third level
constexpr int64_t kRowTiles = 16;                   // packed A of 48 KiB for each k-block
constexpr int64_t kSumsBytes = 512 << 10;           // of all panels of a task, in the second level

// Of parts whose packed B is kept.
constexpr int64_t kMostRows = 1024;  // with more, packing takes a small part of the time
constexpr double kFewestKeptBytes = 32 << 10;
constexpr double kMostKeptBytes = 64 << 20;

struct Choice {
  double time = std::numeric_limits<double>::infinity();
  Blocking blocking;
};

void consider(const Work& w, int threads, int64_t tiles, int64_t panels, bool share_a,
              Choice* best) {
  // In double: with broadcast operands, products of extents can overflow 64 bits.
  const auto bytes = [&w](int64_t rows) {
    return static_cast<double>(rows) * static_cast<double>(w.k) * static_cast<double>(w.outer) *
           sizeof(int16_t);
  };
  const double bytes_a = bytes(w.tiles * kTileRows), bytes_b = bytes(w.panels * kPanelColumns);
  if (share_a && bytes_a > kMostSharedBytes) return;
  const int64_t row_blocks = ceil_div(w.tiles, tiles);
  const bool share_b = !w.b_is_shared && row_blocks > 1 && bytes_b <= kMostSharedBytes;
  const Blocking b{row_blocks, ceil_div(w.panels, panels), share_a, share_b};
  const double blocks = static_cast<double>(ceil_div(w.k, kBlock));
  const double t = static_cast<double>(w.tiles) / static_cast<double>(b.row_blocks);
  const double p = static_cast<double>(w.panels) / static_cast<double>(b.panel_ranges);
  const double strip = w.source == Source::kAlongM ? kPackStrip : 0;
  const double pack = t * kPackTile[static_cast<int>(w.source)] + strip;
  const double tile = share_a ? t * kReadTile[bytes_a <= kCachedBytes ? 0 : 1] : pack;
  const double panel =
      share_b || w.b_is_shared ? kReadPanel[bytes_b <= kCachedBytes ? 0 : 1] : kPackPanel;
  const double task = blocks * (tile + p * (t + panel)) + kStart;
  const double prepare = (share_a ? static_cast<double>(b.row_blocks) * pack : 0) +
                         (share_b ? static_cast<double>(w.panels) * kPackPanel : 0);
  const double tasks =
      static_cast<double>(w.outer) * static_cast<double>(b.row_blocks * b.panel_ranges);
  // Tasks run in rounds. In the last round some threads wait for the others.
  double time = (std::ceil(tasks / threads) + (threads > 1 ? 0.3 : 0)) * task;
  if (prepare > 0)
    time +=
        static_cast<double>(w.outer) * blocks * prepare / threads + (threads > 1 ? kBarrier : 0);
  if (time < best->time) *best = {time, b};
}

}  // namespace

Blocking choose_blocking(const Work& w, int threads) {
  // Short rows of A leave room for more of them.
  const int64_t most_tiles =
      std::min(w.tiles, kRowTiles * kBlock / std::clamp<int64_t>(w.k, kBlock / 4, kBlock) *
                            (w.source == Source::kAlongM ? 8 : 1));
  Choice best;
  int64_t last_tiles = 0;
  for (int64_t t : {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128}) {
    const int64_t tiles = std::min(t, most_tiles);
    if (tiles == last_tiles) break;
    last_tiles = tiles;
    int64_t last_panels = 0;
    for (int64_t p : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256}) {
      const int64_t panels = std::min(p, w.panels);
      if (panels == last_panels) break;
      last_panels = panels;
      if (tiles * panels * kTileRows * kPanelColumns * int64_t{sizeof(float)} > kSumsBytes &&
          panels > 1)
        break;
      consider(w, threads, tiles, panels, false, &best);
      if (w.can_share_a && panels < w.panels) consider(w, threads, tiles, panels, true, &best);
    }
  }
  return best.blocking;
}

bool worth_keeping(const Part& part) {
  const double bytes = static_cast<double>(part.G) * static_cast<double>(part.N) *
                       static_cast<double>(part.K) * sizeof(int16_t);
  return part.in_blocks && part.M <= kMostRows && bytes >= kFewestKeptBytes &&
         bytes <= kMostKeptBytes;
}

}  // namespace dfpjax
