#include "plan/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace dfpjax {
namespace {

// Version 2, of programs that jax.export has serialized, had no tiles.
constexpr int64_t kVersion = 3, kVersionWithoutTiles = 2;
constexpr int64_t kPartHeader = 10, kDimFields = 8, kWindowFields = 3, kGridFields = 5;
constexpr int64_t kMaxExtent = int64_t{1} << 40;  // of one dimension and of a flattened index

// The closed interval of the values that an address or a coordinate can take. After an overflow it
// is inside of no other interval.
class Range {
 public:
  explicit Range(int64_t start) : low_(start), high_(start) {}

  // Adds i * stride for all i in [0, extent).
  void add(int64_t stride, int64_t extent) {
    int64_t reach;
    overflow_ |= __builtin_mul_overflow(stride, extent - 1, &reach);
    overflow_ |=
        __builtin_add_overflow(reach < 0 ? low_ : high_, reach, reach < 0 ? &low_ : &high_);
  }
  void clip(int64_t low, int64_t high) {
    low_ = std::max(low_, low);
    high_ = std::min(high_, high);
  }
  // Adds stride * x for all x of another range.
  void add_scaled(const Range& x, int64_t stride) {
    int64_t first, last;
    overflow_ |= x.overflow_;
    overflow_ |= __builtin_mul_overflow(x.low_, stride, &first);
    overflow_ |= __builtin_mul_overflow(x.high_, stride, &last);
    overflow_ |= __builtin_add_overflow(low_, std::min(first, last), &low_);
    overflow_ |= __builtin_add_overflow(high_, std::max(first, last), &high_);
  }
  bool inside(int64_t low, int64_t high) const {
    return !overflow_ && low <= low_ && high_ <= high;
  }
  bool empty() const { return !overflow_ && low_ > high_; }

 private:
  int64_t low_, high_;
  bool overflow_ = false;
};

class Decoder {
 public:
  Decoder(const int64_t* code, int64_t size) : code_(code), end_(code + size) {}

  bool has(int64_t count) const { return count <= end_ - code_; }
  bool done() const { return code_ == end_; }
  int64_t next() { return *code_++; }

  // Reads `count` dimensions. Those of extent 1 are kept if they are the last one and `keep_last`,
  // or if they move a window and `keep_windows`.
  std::string dims(int64_t count, const char* name, bool keep_last, bool keep_windows,
                   int64_t windows, std::vector<Dim>* dims, int64_t* total) {
    *total = 1;
    for (int64_t i = 0; i < count; ++i) {
      Dim d;
      d.extent = next();
      d.stride_a = next();
      d.stride_b = next();
      d.stride_c = next();
      d.exp_a = next();
      d.exp_b = next();
      const int64_t window = next();
      d.coef = next();
      if (d.extent < 0 || d.extent > kMaxExtent)
        return std::string("a dimension of ") + name + " has an extent out of range";
      if (window < -1 || window >= windows)
        return std::string("a dimension of ") + name + " names a window that does not exist";
      d.window = static_cast<int>(window);
      if (__builtin_mul_overflow(*total, d.extent, total) || *total > kMaxExtent)
        return std::string("the extents of ") + name + " are too large";
      if (d.extent != 1 || (keep_last && i == count - 1) || (keep_windows && window >= 0))
        dims->push_back(d);
    }
    if (dims->size() > kMaxDims) return std::string("too many dimensions in ") + name;
    return "";
  }

 private:
  const int64_t* code_;
  const int64_t* end_;
};

bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

// Reads a grid of an operand of `size` elements with `exponents` exponents.
std::string decode_grid(Decoder* in, int64_t size, int64_t exponents, Grid* grid) {
  grid->outer = in->next();
  grid->columns = in->next();
  grid->block_rows = in->next();
  grid->block_columns = in->next();
  grid->dithered = in->next() != 0;
  if (grid->columns < 1 || grid->outer < grid->columns || grid->outer % grid->columns != 0 ||
      grid->outer > kMaxExtent)
    return "a grid has rows or columns out of range";
  if (!power_of_two(grid->block_rows) || !power_of_two(grid->block_columns) ||
      grid->block_rows > kMaxExtent || grid->block_columns > 2 * kMaxExtent)
    return "a grid has blocks that are not powers of two";
  grid->outers = (size + grid->outer - 1) / grid->outer;
  int64_t count;
  if (__builtin_mul_overflow(grid->outers, grid->block_row_count(), &count) ||
      __builtin_mul_overflow(count, grid->block_column_count(), &count) || count > exponents)
    return "a grid has more blocks than there are exponents";
  return "";
}

template <typename F>
void for_each_dim(const Part& p, bool g, bool m, bool n, bool k, F f) {
  for (auto [on, dims] : {std::pair{g, &p.g}, {m, &p.m}, {n, &p.n}, {k, &p.k}})
    if (on)
      for (const Dim& d : *dims) f(d);
}

// Checks every address that the part can reach.
std::string check_addresses(const Part& p, const BufferSizes& sizes) {
  Range c(p.base_c), ea(0), eb(0);
  for_each_dim(p, true, true, true, false, [&](const Dim& d) { c.add(d.stride_c, d.extent); });
  for_each_dim(p, true, true, false, false, [&](const Dim& d) { ea.add(d.exp_a, d.extent); });
  for_each_dim(p, true, false, true, false, [&](const Dim& d) { eb.add(d.exp_b, d.extent); });
  if (!c.inside(0, sizes.c - 1)) return "c: the plan reaches outside the output";
  // decode_grid has checked the exponents of blocks; an operand without elements has none.
  if (!p.in_blocks && !ea.inside(0, sizes.ea - 1))
    return "ea: the plan reaches outside the exponents";
  if (!p.in_blocks && !eb.inside(0, sizes.eb - 1))
    return "eb: the plan reaches outside the exponents";
  if (p.K == 0) return "";

  Range b(p.base_b);
  for_each_dim(p, true, false, true, true, [&](const Dim& d) { b.add(d.stride_b, d.extent); });
  if (!b.inside(0, sizes.b - 1)) return "b: the plan reaches outside the operand";

  Range a(p.base_a);
  bool reads_a = true;
  for_each_dim(p, true, true, false, true, [&](const Dim& d) { a.add(d.stride_a, d.extent); });
  Range anywhere = a;
  for (size_t w = 0; w < p.windows.size(); ++w) {
    const Window& window = p.windows[w];
    Range coord(window.offset), moved(0);
    for_each_dim(p, true, true, false, true, [&](const Dim& d) {
      if (d.window != static_cast<int>(w)) return;
      coord.add(d.coef, d.extent);
      moved.add(d.coef, d.extent);
    });
    // Coordinates have 32 bits, and so do the summands from points and runs. Either may be computed
    // one step further.
    constexpr int64_t kLimit = (int64_t{1} << 30) - 1;
    if (!coord.inside(-kLimit, kLimit) || !moved.inside(-kLimit, kLimit))
      return "plan: a window coordinate is out of range";
    anywhere.add_scaled(coord, window.stride_a);
    // Winograd tiles reach beyond the last output, up to the whole window.
    if (p.tile > 0) coord = Range(0), coord.add(1, window.size);
    coord.clip(0, window.size - 1);
    if (coord.empty())
      reads_a = false;
    else
      a.add_scaled(coord, window.stride_a);
  }
  // Addresses of padding are computed, too, but never read.
  constexpr int64_t kFarthest = int64_t{1} << 44;
  if (!anywhere.inside(-kFarthest, kFarthest)) return "a: an address overflows";
  if (reads_a && !a.inside(0, sizes.a - 1)) return "a: the plan reaches outside the operand";
  return "";
}

// Checks that a dimension moves only the tensors that have it.
std::string check_strides(const Part& p) {
  for (const Dim& d : p.m)
    if (d.stride_b != 0 || d.exp_b != 0) return "plan: a dimension of M moves B";
  for (const Dim& d : p.n)
    if (d.stride_a != 0 || d.exp_a != 0) return "plan: a dimension of N moves A";
  for (const Dim& d : p.k)
    if (d.stride_c != 0 || d.exp_a != 0 || d.exp_b != 0)
      return "plan: a dimension of K moves C or an exponent";
  return "";
}

// Whether all lanes of an operand lie in one row of its grid, and the columns of blocks that they
// meet depend on g alone. `of_g` are the strides of g, `strides` those of everything else.
bool lanes_in_rows(const Grid& grid, int64_t base, int64_t lanes, const std::vector<int64_t>& of_g,
                   const std::vector<int64_t>& strides) {
  const bool one_column = grid.block_column_count() == 1;
  const bool one_block = one_column && grid.block_row_count() == 1;
  if (one_block && grid.outers == 1) return true;
  const int64_t row = one_block ? grid.outer : grid.columns;
  const auto multiples_of = [](int64_t size, const std::vector<int64_t>& all) {
    return std::all_of(all.begin(), all.end(),
                       [size](int64_t stride) { return stride % size == 0; });
  };
  const bool whole_rows = multiples_of(row, strides);
  if (whole_rows && multiples_of(row, of_g)) return base % row + lanes <= row;
  return (whole_rows || one_column) && row % lanes == 0 && base % lanes == 0 &&
         multiples_of(lanes, strides) && multiples_of(lanes, of_g);
}

// The dimensions of the taps of a Winograd part, and of the channels.
const std::vector<Dim>& dims_of_taps(const Part& p) {
  return p.mode == Mode::kWinogradAlongM ? p.k : p.m;
}

// Taps along an axis of a Winograd part, or 0 if it has none.
int find_taps(const Part& p) {
  for (const Dim& d : dims_of_taps(p))
    if (d.window >= 0 && d.extent <= kMostTaps) return static_cast<int>(d.extent);
  return 0;
}

// Checks the structure of a Winograd part.
std::string check_winograd(const Part& p) {
  if (p.tile != 2 && p.tile != 4) return "plan: a Winograd tile must have 2 or 4 outputs";
  if (!p.in_blocks) return "plan: a Winograd part needs grids";
  const int64_t axes = static_cast<int64_t>(p.windows.size());
  if (axes != 1 && axes != 2) return "plan: a Winograd part needs one or two windows";
  const bool along_m = p.mode == Mode::kWinogradAlongM;
  const auto& tiled = along_m ? p.m : p.k;
  const auto& taps = dims_of_taps(p);
  const auto moving = [](const std::vector<Dim>& dims, int64_t w) {
    return std::count_if(dims.begin(), dims.end(), [w](const Dim& d) { return d.window == w; });
  };
  for (int64_t w = 0; w < axes; ++w)
    if (moving(tiled, w) != 1 || moving(taps, w) != 1 || moving(p.g, w) != 0)
      return "plan: a Winograd part needs a dimension of M and one of K for each window";
  for (const auto* dims : {&tiled, &taps})
    for (const Dim& d : *dims)
      if (d.window >= 0 && (d.coef != 1 && d.coef != -1))
        return "plan: a window of a Winograd part has a stride or dilation";
  for (const Dim& d : taps)
    if (d.window >= 0 && (d.extent != p.taps || (p.taps != 3 && (p.taps != 5 || p.tile != 2))))
      return "plan: a Winograd part needs 3 taps along each axis, or 5 and a tile of 2 outputs";
  const auto is_channel = [](const Dim& d) { return d.window < 0; };
  if (std::count_if(taps.begin(), taps.end(), is_channel) != 1 || p.n.size() != 1)
    return "plan: a Winograd part needs one dimension of channels, and one of N";
  const Dim& channel = *std::find_if(taps.begin(), taps.end(), is_channel);
  const Dim& n = p.n.front();
  const bool along_k = n.stride_b != 1;  // B is contiguous along the channels
  if (channel.stride_a != 1 || n.stride_c != 1 || (along_k && (!along_m || channel.stride_b != 1)))
    return "plan: a Winograd part needs contiguous channels and columns";
  std::vector<int64_t> of_g_a, of_g_b, strides_a, strides_b;
  for (const Dim& d : p.g) {
    of_g_a.push_back(d.stride_a);
    of_g_b.push_back(d.stride_b);
  }
  for (const auto* dims : {&p.m, &p.n, &p.k})
    for (const Dim& d : *dims) {
      if (&d != &channel) strides_a.push_back(d.stride_a);
      if (&d != (along_k ? &channel : &n)) strides_b.push_back(d.stride_b);
    }
  for (const Window& window : p.windows) strides_a.push_back(window.stride_a);
  if (!lanes_in_rows(p.grid_a, p.base_a, channel.extent, of_g_a, strides_a) ||
      !lanes_in_rows(p.grid_b, p.base_b, along_k ? channel.extent : n.extent, of_g_b, strides_b))
    return "plan: the lanes of a Winograd part cross rows of blocks";
  return "";
}

std::string check_part(const Part& p, const BufferSizes& sizes, int64_t* outputs) {
  if (p.blocks_per_split < 1) return "plan: blocks_per_split must be positive";
  const std::string error = check_strides(p);
  if (!error.empty()) return error;
  for (const auto* dims : {&p.g, &p.m, &p.k})
    for (const Dim& d : *dims)
      if (d.window >= 0 && d.stride_a != 0)
        return "plan: a dimension that moves a window has a stride of its own";
  for (const Dim& d : p.n)
    if (d.window >= 0) return "plan: a dimension of N moves a window";
  for (const Window& w : p.windows)
    if (w.size < 1 || w.size > std::numeric_limits<int32_t>::max() / 2)
      return "plan: a window has a size out of range";
  if (p.in_blocks) {
    for (const auto* dims : {&p.g, &p.m, &p.n})
      for (const Dim& d : *dims)
        if (d.exp_a != 0 || d.exp_b != 0) return "plan: a dimension strides over blocks' exponents";
  }
  if (p.mode == Mode::kLanes) {
    if (p.N > 1) return "plan: lanes need an N of extent 1";
    if (p.g.empty()) return "plan: lanes need a G dimension";
    const Dim& d = p.g.back();
    if (d.stride_a != 1 || d.stride_b != 1 || d.stride_c != 1)
      return "plan: lanes need a last G dimension of unit strides";
  }
  const bool winograd = p.mode == Mode::kWinogradAlongM || p.mode == Mode::kWinogradAlongK;
  if (!winograd && p.tile != 0) return "plan: a part that is not Winograd's has a tile";
  if (p.G == 0 || p.M == 0 || p.N == 0) return "";
  if (winograd) {
    if (p.K == 0) return "plan: a Winograd part needs channels";
    const std::string structure = check_winograd(p);
    if (!structure.empty()) return structure;
  }
  if (__builtin_mul_overflow(p.G, p.M, outputs) || __builtin_mul_overflow(*outputs, p.N, outputs) ||
      *outputs > sizes.c)
    return "c: the plan has more outputs than the buffer";
  return check_addresses(p, sizes);
}

template <typename T>
bool aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(T) == 0;
}

}  // namespace

std::string check_alignment(const int16_t* a, const int16_t* b, const float* c, const int32_t* ea,
                            const int32_t* eb) {
  for (const auto& [ok, name] : {std::pair{aligned(a), "a"},
                                 {aligned(b), "b"},
                                 {aligned(c), "c"},
                                 {aligned(ea), "ea"},
                                 {aligned(eb), "eb"}})
    if (!ok) return std::string(name) + ": is not aligned to its elements";
  return "";
}

std::string decode_plan(const int64_t* code, int64_t size, const BufferSizes& sizes,
                        std::vector<Part>* parts) {
  Decoder in(code, size);
  if (!in.has(2)) return "plan: truncated";
  const int64_t version = in.next();
  if (version != kVersion && version != kVersionWithoutTiles) return "plan: unknown version";
  const int64_t header = kPartHeader + (version == kVersion ? 1 : 0);
  const int64_t grids = in.next();
  if (grids != 0 && grids != 2) return "plan: a number of grids is out of range";
  if (!in.has(grids * kGridFields + 1)) return "plan: truncated";
  Grid grid_a{}, grid_b{};
  if (grids == 2) {
    std::string error = decode_grid(&in, sizes.a, sizes.ea, &grid_a);
    if (error.empty()) error = decode_grid(&in, sizes.b, sizes.eb, &grid_b);
    if (!error.empty()) return "plan: " + error;
  }
  const int64_t count = in.next();
  if (count < 0 || !in.has(count) || !in.has(count * header)) return "plan: truncated";
  parts->reserve(static_cast<size_t>(count));
  int64_t missing = sizes.c;  // outputs that no part has written yet
  int64_t products = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!in.has(header)) return "plan: truncated";
    Part p;
    const int64_t mode = in.next();
    if (mode < 0 || mode > 3) return "plan: unknown mode";
    p.mode = static_cast<Mode>(mode);
    p.in_blocks = grids == 2;
    p.grid_a = grid_a;
    p.grid_b = grid_b;
    p.base_a = in.next();
    p.base_b = in.next();
    p.base_c = in.next();
    p.blocks_per_split = in.next();
    const int64_t tile = version == kVersion ? in.next() : 0;
    if (tile < 0 || tile > 4) return "plan: a tile is out of range";
    p.tile = static_cast<int>(tile);
    int64_t dims[4], windows = 0, total = 0;
    for (int64_t& d : dims) {
      d = in.next();
      if (d < 0 || d > 1024) return "plan: a number of dimensions is out of range";
      total += d;
    }
    windows = in.next();
    if (windows < 0 || windows > kMaxWindows) return "plan: a number of windows is out of range";
    if (!in.has(total * kDimFields + windows * kWindowFields)) return "plan: truncated";
    const bool lanes = p.mode == Mode::kLanes;
    const bool kept = p.tile > 0;
    std::string error = in.dims(dims[0], "G", lanes, kept, windows, &p.g, &p.G);
    if (error.empty()) error = in.dims(dims[1], "M", false, kept, windows, &p.m, &p.M);
    if (error.empty()) error = in.dims(dims[2], "N", false, kept, windows, &p.n, &p.N);
    if (error.empty()) error = in.dims(dims[3], "K", false, kept, windows, &p.k, &p.K);
    if (!error.empty()) return "plan: " + error;
    for (int64_t w = 0; w < windows; ++w) {
      Window window;
      window.size = in.next();
      window.stride_a = in.next();
      window.offset = in.next();
      p.windows.push_back(window);
    }
    if (p.mode == Mode::kWinogradAlongM || p.mode == Mode::kWinogradAlongK) p.taps = find_taps(p);
    int64_t outputs = 0;
    error = check_part(p, sizes, &outputs);
    if (!error.empty()) return error;
    missing -= outputs;
    if (missing < 0) return "c: the plan has more outputs than the buffer";
    int64_t part_products;
    if (__builtin_mul_overflow(outputs, p.K, &part_products) ||
        part_products > kMostProducts - products)
      return "plan: the contraction is too large";
    products += part_products;
    constexpr int64_t kMostBlocks = kMaxExtent / kBlock;
    p.blocks_per_split = std::min(p.blocks_per_split, kMostBlocks);
    if (p.G > 0 && p.M > 0 && p.N > 0) parts->push_back(std::move(p));
  }
  if (!in.done()) return "plan: trailing values";
  if (missing > 0) return "c: the plan has fewer outputs than the buffer";
  return "";
}

}  // namespace dfpjax
