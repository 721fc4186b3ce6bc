// Runs Winograd parts on every path that this CPU supports against the scalar reference.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.h"
#include "tests/cases.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

enum class Pass { kFprop, kDgrad, kWgrad };
constexpr Pass kAllPasses[] = {Pass::kFprop, Pass::kDgrad, Pass::kWgrad};

// A tile along each axis, and the kernel's extent.
struct TileOfKernel {
  int64_t outputs, taps;
};
constexpr TileOfKernel kAllTiles[] = {{2, 3}, {4, 3}, {2, 5}};

// A pass of a convolution with square kernels. The padding of those of 5 x 5 is larger by 1.
Case winograd(Pass pass, TileOfKernel tile, int64_t batch, int64_t height, int64_t width,
              int64_t in, int64_t out, int64_t pad, int64_t split = 1) {
  const Conv v{batch, height, width, in, out, tile.taps, 1, pad + (tile.taps - 3) / 2, 1};
  Case t = pass == Pass::kFprop   ? fprop(v, split)
           : pass == Pass::kDgrad ? dgrad(v, split)
                                  : wgrad(v, split);
  t.name += " tile " + std::to_string(tile.outputs) + " split " + std::to_string(split);
  PartCode& p = t.parts[0];
  p.mode = pass == Pass::kWgrad ? 3 : 2;
  p.tile = tile.outputs;
  return t;
}

std::vector<Dim*> dims_of(PartCode* p) {
  std::vector<Dim*> result;
  for (auto* dims : {&p->g, &p->m, &p->n, &p->k})
    for (Dim& d : *dims) result.push_back(&d);
  return result;
}

// A convolution along the width of images of one row.
Case along_one_axis(Pass pass, TileOfKernel tile, int64_t batch, int64_t width, int64_t in,
                    int64_t out, int64_t split = 1) {
  Case t = winograd(pass, tile, batch, 1, width, in, out, 1, split);
  t.name += " along one axis";
  PartCode& p = t.parts[0];
  for (auto* dims : {&p.m, &p.k}) {
    dims->erase(
        std::remove_if(dims->begin(), dims->end(), [](const Dim& d) { return d.window == 0; }),
        dims->end());
    for (Dim& d : *dims)
      if (d.window == 1) d.window = 0;
  }
  p.windows.erase(p.windows.begin());
  if (pass == Pass::kWgrad) t.c /= tile.taps;
  return t;
}

const Dim& channels(const PartCode& p) {
  const auto& dims = p.mode == 2 ? p.k : p.m;
  return *std::find_if(dims.begin(), dims.end(), [](const Dim& d) { return d.window < 0; });
}

// The lanes of B: its contiguous dimension.
int64_t lanes_of_b(const PartCode& p) {
  return p.n[0].stride_b == 1 ? p.n[0].extent : channels(p).extent;
}

// With as many groups of channels in each pixel.
Case grouped(Case t, int64_t groups) {
  t.name += ", " + std::to_string(groups) + " groups";
  PartCode& p = t.parts[0];
  const int64_t a = channels(p).extent, b = lanes_of_b(p), c = p.n[0].extent;
  for (Dim* d : dims_of(&p))
    for (int64_t Dim::* stride : {&Dim::stride_a, &Dim::stride_b, &Dim::stride_c})
      if (d->*stride != 1) d->*stride *= groups;
  for (Window& w : p.windows) w.stride_a *= groups;
  p.g = {dim(groups, a, b, c)};
  t.a *= groups;
  t.b *= groups;
  t.c *= groups;
  return t;
}

// With as many examples, each with its own kernel.
Case with_examples(Case t, int64_t examples) {
  t.name += ", " + std::to_string(examples) + " examples";
  t.parts[0].g.insert(t.parts[0].g.begin(), dim(examples, t.a, t.b, t.c));
  t.a *= examples;
  t.b *= examples;
  t.c *= examples;
  return t;
}

// With the taps, or outputs and taps, of a window in the other direction, and its origin moved.
Case turned(Case t, int window, bool taps_alone, int64_t by) {
  t.name += std::string(", turned ") + (taps_alone ? "taps" : "outputs and taps") + " of window " +
            std::to_string(window) + " by " + std::to_string(by);
  PartCode& p = t.parts[0];
  const auto& taps = p.mode == 2 ? p.k : p.m;
  for (Dim* d : dims_of(&p)) {
    const bool is_tap =
        std::any_of(taps.begin(), taps.end(), [d](const Dim& x) { return &x == d; });
    if (d->window == window && (is_tap || !taps_alone)) d->coef = -d->coef;
  }
  p.windows[static_cast<size_t>(window)].offset += by;
  return t;
}

// In small blocks of the rows of channels.
Case in_small_blocks(Case t, uint32_t spread, int64_t groups = 1) {
  const PartCode p = t.parts[0];
  return in_blocks(std::move(t), channels(p).extent * groups, lanes_of_b(p) * groups, false,
                   spread);
}

// With one exponent for each operand.
Case with_one_exponent(Case t) {
  const auto whole = [](int64_t size) { return Grid{size, size, 1, int64_t{1} << 40, false}; };
  const Grid a = whole(t.a), b = whole(t.b);
  t.name += " with one exponent";
  return in_grids(std::move(t), a, b, 5);
}

std::vector<Case> make_cases() {
  std::vector<Case> cases;
  const auto add = [&](const Case& t) {
    cases.push_back(in_small_blocks(t, cases.size() % 2 ? 60 : 5));
  };
  for (const TileOfKernel tile : kAllTiles)
    for (const Pass pass : kAllPasses) {
      // Every remainder of extents, and padding of 0 to 2.
      for (int64_t extent = 3; extent <= 8; ++extent)
        add(winograd(pass, tile, 2, extent, 11 - extent, 5 + extent, 20, extent % 3));
      for (int64_t width = 2; width <= 7; ++width)
        add(along_one_axis(pass, tile, 3, width, 10, 6 + width));
      add(winograd(pass, tile, 1, 3, 4, 300, 70, 1));  // several blocks of channels, and panels
      add(winograd(pass, tile, 1, 5, 3, 70, 530, 1));
      add(winograd(pass, tile, 3, 13, 11, 3, 67, 1));  // a narrow last panel
      add(along_one_axis(pass, tile, 2, 9, 259, 130));
      add(winograd(pass, tile, 2, 30, 27, 9, 17, 1));  // several tasks
      add(along_one_axis(pass, tile, 30, 21, 8, 12));
      for (const int64_t split : {1, 2}) {  // several blocks of tiles, and splits
        add(winograd(pass, tile, 12, 23, 21, 7, 18, 1, split));
        add(along_one_axis(pass, tile, 40, 29, 14, 5, split));
      }
      for (const int64_t by : {-2, 0, 2}) {
        add(turned(winograd(pass, tile, 2, 7, 6, 8, 9, 1), 0, true, by));
        add(turned(winograd(pass, tile, 1, 5, 8, 8, 9, 1), 1, false, by + 6));
        add(turned(along_one_axis(pass, tile, 2, 10, 8, 9), 0, true, by));
      }
      add(with_examples(winograd(pass, tile, 2, 5, 6, 8, 9, 1), 3));
      add(with_examples(along_one_axis(pass, tile, 20, 9, 8, 66, 1), 2));
      for (const uint32_t spread : {5, 60, 300}) {
        cases.push_back(
            in_small_blocks(grouped(winograd(pass, tile, 2, 6, 5, 16, 33, 1), 3), spread, 3));
        cases.push_back(
            in_small_blocks(with_examples(winograd(pass, tile, 2, 6, 5, 280, 40, 1), 2), spread));
        cases.push_back(in_small_blocks(winograd(pass, tile, 9, 19, 18, 8, 40, 1, 1), spread));
        // The rows of A's grid are rows of pixels, and blocks have all of their columns.
        const Case rows = winograd(pass, tile, 2, 8, 7, 12, 20, 1);
        const PartCode& p = rows.parts[0];
        const int64_t row = p.windows[0].stride_a, lanes = lanes_of_b(p);
        cases.push_back(in_grids(rows, {row * 4, row, 2, int64_t{1} << 12, false},
                                 {lanes * 40, lanes, 8, 16, false}, spread));
      }
      cases.push_back(with_one_exponent(winograd(pass, tile, 2, 7, 9, 260, 30, 1)));
      cases.push_back(with_one_exponent(along_one_axis(pass, tile, 30, 21, 6, 30)));
    }
  return cases;
}

void check_rejected(const Case& t, const std::string& message) {
  const std::vector<int64_t> code = encode(t.parts, t.grids);
  std::vector<Part> parts;
  const std::string error = decode_plan(code.data(), static_cast<int64_t>(code.size()),
                                        {t.a, t.b, t.c, t.exponents_a, t.exponents_b}, &parts);
  expect(message.empty() ? error.empty() : error.find(message) != std::string::npos,
         "'" + error + "' in place of '" + message + "'");
}

void check_validation() {
  for (const Pass pass : kAllPasses) {
    const Case good = in_small_blocks(winograd(pass, {4, 3}, 2, 7, 6, 8, 20, 1), 5);
    const auto rejected = [&good](const std::string& message, auto change) {
      Case t = good;
      change(&t, &t.parts[0]);
      check_rejected(t, message);
    };
    rejected("", [](Case*, PartCode*) {});
    rejected("unknown mode", [](Case*, PartCode* p) { p->mode = 4; });
    rejected("tile is out of range", [](Case*, PartCode* p) { p->tile = 5; });
    for (const int64_t tile : {0, 1, 3})
      rejected("2 or 4 outputs", [tile](Case*, PartCode* p) { p->tile = tile; });
    for (const int64_t mode : {0, 1})
      rejected(mode == 0 ? "not Winograd's has a tile" : "lanes",
               [mode](Case*, PartCode* p) { p->mode = mode; });
    rejected("needs grids", [](Case* t, PartCode*) { t->grids.clear(); });
    rejected("one or two windows", [](Case*, PartCode* p) {
      p->windows.clear();
      for (Dim* d : dims_of(p)) d->window = -1;
    });
    rejected("one or two windows", [](Case*, PartCode* p) { p->windows.resize(3, p->windows[0]); });
    rejected("for each window", [](Case*, PartCode* p) {
      for (Dim& d : p->m)
        if (d.window == 1) d.window = 0;
    });
    rejected("for each window", [](Case*, PartCode* p) {
      for (Dim& d : p->k)
        if (d.window == 1) d.window = -1;
    });
    rejected("for each window", [](Case*, PartCode* p) { p->g = {dim(2, 0, 0, 0, 0, 1)}; });
    for (const int64_t coef : {-2, 0, 2})
      for (const bool of_m : {false, true})
        rejected("stride or dilation", [=](Case*, PartCode* p) {
          for (Dim& d : of_m ? p->m : p->k)
            if (d.window == 1) d.coef = coef;
        });
    for (const int64_t extent : {1, 2, 4, 5, 6})
      rejected("needs 3 taps", [=](Case*, PartCode* p) {
        for (Dim& d : p->mode == 2 ? p->k : p->m)
          if (d.window == 0) d.extent = extent;
      });
    rejected("one dimension of channels",
             [](Case*, PartCode* p) { (p->mode == 2 ? p->k : p->m).push_back(dim(2, 0, 0, 0)); });
    rejected("one dimension of channels", [](Case*, PartCode* p) {
      for (Dim& d : p->mode == 2 ? p->k : p->m)
        if (d.window < 0) d.extent = 1;
    });
    rejected("one of N", [](Case*, PartCode* p) { p->n[0].extent = 1; });
    rejected("one of N", [](Case*, PartCode* p) { p->n.push_back(p->n[0]); });
    rejected("contiguous", [](Case*, PartCode* p) { p->n[0].stride_c = 2; });
    rejected("contiguous", [](Case*, PartCode* p) {
      for (Dim& d : p->mode == 2 ? p->k : p->m)
        if (d.window < 0) d.stride_a = 2;
    });
    rejected("contiguous", [](Case*, PartCode* p) {
      p->n[0].stride_b = 2;
      for (Dim& d : p->k)
        if (d.window < 0) d.stride_b = 2;
    });
    const auto with_rows = [](int64_t columns_a, int64_t columns_b) {
      return [=](Case* t, PartCode*) { *t = in_blocks(*t, columns_a, columns_b, false, 5); };
    };
    const int64_t lanes_a = channels(good.parts[0]).extent, lanes_b = lanes_of_b(good.parts[0]);
    rejected("cross rows of blocks", with_rows(lanes_a - 1, lanes_b));
    rejected("cross rows of blocks", with_rows(lanes_a, lanes_b - 1));
    // Pixels of a row in several columns of blocks.
    rejected("cross rows of blocks", with_rows(good.parts[0].windows[0].stride_a, lanes_b));
    // Groups of one block each, whose borders lie between pixels or not.
    const auto with_groups = [](int64_t size_a, int64_t size_b) {
      return [=](Case* t, PartCode*) {
        *t = in_grids(*t, {size_a, size_a, 1, 4096, false}, {size_b, size_b, 1, 4096, false}, 5);
      };
    };
    rejected("", with_groups(2 * lanes_a, 3 * lanes_b));
    rejected("cross rows of blocks", with_groups(2 * lanes_a + 1, 3 * lanes_b));
    rejected("cross rows of blocks", with_groups(2 * lanes_a, 3 * lanes_b - 1));
    rejected("needs channels", [](Case*, PartCode* p) { p->k[0].extent = 0; });
    rejected("a: the plan reaches outside", [](Case*, PartCode* p) { ++p->windows[0].size; });
  }
}

}  // namespace

void run_test(bool quick) {
  std::mt19937 random(1);
  check_validation();
  const std::vector<Case> cases = make_cases();
  if (quick) {
    for (size_t i = 0; i < cases.size(); i += 5) check(cases[i], kAllData[i / 5 % 6], 3, &random);
    return;
  }
  size_t turn = 0;
  for (const Case& t : cases)
    for (const Data kind : {kAllData[turn++ % 6], kAllData[turn++ % 6]}) check(t, kind, 3, &random);
  for (const TileOfKernel tile : kAllTiles)
    for (const Pass pass : kAllPasses) {
      const Case deep = winograd(pass, tile, 2, 9, 10, 300, 66, 1);
      const Case small = winograd(pass, tile, 9, 19, 18, 5, 20, 1);
      // The largest mantissas: no sum may overflow.
      for (const Data kind : {Data::kFull, Data::kLowest, Data::kLowestAlone})
        for (const Case& t : {deep, small}) check(with_one_exponent(t), kind, 3, &random);
      // Scales outside of the range of normal numbers, or of all float32 numbers.
      for (const int32_t e : {-200, -163, -150, -130, -120, -110, 60, 90, 120, 300, 1 << 20})
        for (const uint32_t spread : {5, 60, 300})
          check(in_small_blocks(small, spread), Data::kSmall, e, &random);
    }
}

}  // namespace dfpjax
