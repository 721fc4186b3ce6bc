// Winograd tiles along K (wgrad). First come the units of rows and columns. A task then takes some
// rows and columns of one split, and adds up their products at each position, block by block. If
// several tasks need the same rows or columns, all blocks are transformed before, or else each task
// transforms its own. At last the splits are added up.

#include "contraction/alignment.h"
#include "contraction/packing.h"
#include "contraction/running.h"
#include "contraction/tiled_operand.h"
#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

alignas(64) constexpr float kZeros[kPanelColumns] = {};
constexpr int64_t kGroupRows = 48;  // whole tiles and vectors
constexpr int64_t kTaskTiles = 43;  // of rows
constexpr int64_t kTaskPanels = 4;
constexpr int64_t kMostShared = int64_t{64} << 20;  // bytes

// Sums come from the outer caches, too late for a cell that asks for them at its end.
void prefetch(const float* sums) {
  constexpr int kLine = 64 / sizeof(float);
  for (int i = 0; i < kTileRows * kPanelColumns; i += kLine) __builtin_prefetch(sums + i, 1);
}

class AlongK : public WinogradJob {
 public:
  AlongK(const Part& part, const Operands& operands, const Chains& chains,
         const ContractionKernels& kernels, int threads);
  void enlist(std::vector<Stage>* stages) override;

 private:
  using Packed = TiledOperand::Packed;
  struct Task {
    int64_t g, split, row, row_end, panel, panel_end;  // rows are multiples of kTileRows
  };
  struct Workspace {
    explicit Workspace(const AlongK& t);
    PatchSpace space;
    Packed a, b;   // if they are not shared
    Scratch sums;  // [panel][position][row][column]
    alignas(64) float memory[kTileRows * kPanelColumns];
    alignas(64) float bounce[kMostTaps * kMostTaps][kPanelColumns];
    int64_t lengths[kChainLengths] = {};
  };

  void divide();
  void share();
  int64_t tasks() const { return p_.G * splits_ * row_ranges_ * panel_ranges_; }
  Task task(int64_t index) const;
  void run_task(const Task& t, Workspace* w) const;
  void multiply(const Task& t, int64_t block, int64_t end, const Packed* a, const Packed* b,
                Workspace* w) const;
  void finish(const Task& t, const Packed& a, const Packed& b, Workspace* w) const;
  void combine(int64_t row) const;

  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, n_ - panel * kPanelColumns);
  }
  int64_t sums_stride() const { return spread(task_rows_ * kPanelColumns); }  // between positions
  float* sums(const Workspace& w, const Task& t, int64_t panel, int64_t p, int64_t row) const {
    return w.sums.as<float>() + ((panel - t.panel) * positions_ + p) * sums_stride() +
           row * kPanelColumns;
  }
  float* partial(int64_t split, int64_t g, int64_t row, int64_t tap) const {
    return partial_.as<float>() +
           (((split * p_.G + g) * rows_ + row) * taps_ + tap) * round_up(n_, kColumnQuantum);
  }

  const int64_t rows_, n_, panels_, blocks_, splits_, taps_;
  TiledOperand a_, b_;
  int64_t row_ranges_, panel_ranges_, task_rows_, task_panels_;
  bool shared_ = false;
  std::vector<Packed> shared_a_, shared_b_;  // [g][block]
  Scratch partial_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;
};

AlongK::AlongK(const Part& part, const Operands& operands, const Chains& chains,
               const ContractionKernels& kernels, int threads)
    : WinogradJob(part, operands, chains, kernels, threads),
      rows_(winograd_.channels().extent),
      n_(part.n.front().extent),
      panels_(ceil_div(n_, kPanelColumns)),
      blocks_(ceil_div(winograd_.patches_of_a().points.extent(), kBlockOfTiles)),
      splits_(ceil_div(blocks_, part.blocks_per_split)),
      taps_(static_cast<int64_t>(results_.elements.size())),
      a_(part.grid_a, operands.a, operands.ea, part.base_a, winograd_.patches_of_a(), part.g,
         &Dim::stride_a, rows_, blocks_, tile_, Transform::kInput, {kGroupRows, kTileRows},
         kernels),
      b_(part.grid_b, operands.b, operands.eb, part.base_b, winograd_.patches_of_b(false), part.g,
         &Dim::stride_b, n_, blocks_, tile_, Transform::kCotangent, {kPanelColumns, kPanelColumns},
         kernels),
      workspaces_(static_cast<size_t>(threads)) {
  divide();
  share();
  if (splits_ > 1)
    partial_ = Scratch::array<float>({splits_, p_.G, rows_, taps_, round_up(n_, kColumnQuantum)});
}

// Divides rows and columns among the tasks.
void AlongK::divide() {
  const int64_t tiles = ceil_div(rows_, kTileRows);
  row_ranges_ = ceil_div(tiles, kTaskTiles);
  panel_ranges_ = ceil_div(panels_, kTaskPanels);
  while (tasks() < threads_ && (row_ranges_ < tiles || panel_ranges_ < panels_)) {
    // Halve the larger side.
    const int64_t rows = rows_ / row_ranges_, wide = n_ / panel_ranges_;
    if (panel_ranges_ < panels_ && (wide >= rows || row_ranges_ == tiles))
      panel_ranges_ = std::min(2 * panel_ranges_, panels_);
    else
      row_ranges_ = std::min(2 * row_ranges_, tiles);
  }
  // Operands that are transformed anyway are divided further, so that the sums of a task stay in
  // the second cache.
  shared_ = row_ranges_ * panel_ranges_ > 1 &&
            p_.G * blocks_ * (a_.room_bytes(rows_) + b_.room_bytes(n_)) <= kMostShared;
  if (shared_) {
    panel_ranges_ = panels_;
    row_ranges_ = std::max(row_ranges_, ceil_div(rows_, kGroupRows));
    while (tasks() < 4 * threads_ && row_ranges_ < tiles)
      row_ranges_ = std::min(2 * row_ranges_, tiles);
  }
  task_rows_ = ceil_div(tiles, row_ranges_) * kTileRows;
  task_panels_ = ceil_div(panels_, panel_ranges_);
}

void AlongK::share() {
  if (!shared_) return;
  for (int64_t i = 0; i < p_.G * blocks_; ++i) {
    shared_a_.push_back(a_.room(rows_));
    shared_b_.push_back(b_.room(n_));
  }
}

AlongK::Workspace::Workspace(const AlongK& t)
    : sums(Scratch::array<float>({t.task_panels_, t.positions_, t.sums_stride()})) {
  if (t.shared_) return;
  a = t.a_.room(t.task_rows_);
  b = t.b_.room(t.task_panels_ * kPanelColumns);
}

void AlongK::enlist(std::vector<Stage>* stages) {
  const auto each_side = [this](auto f) {
    f(&a_, &shared_a_, rows_);
    f(&b_, &shared_b_, n_);
  };
  each_side([&](TiledOperand* side, std::vector<Packed>*, int64_t) {
    (*stages)[kPrepare].push_back({p_.G * blocks_, 1, [this, side](int, int64_t low, int64_t high) {
                                     PatchSpace space;
                                     for (int64_t i = low; i < high; ++i)
                                       side->find_units(i / blocks_, i % blocks_, &space);
                                   }});
  });
  if (shared_)
    each_side([&](TiledOperand* side, std::vector<Packed>* packed, int64_t lanes) {
      const int64_t groups = side->groups(lanes);
      (*stages)[kTransform].push_back(
          {p_.G * blocks_ * groups, 1,
           [this, side, packed, groups](int, int64_t low, int64_t high) {
             PatchSpace space;
             for (int64_t i = low; i < high; ++i) {
               const int64_t at = i / groups;
               Packed* const to = &(*packed)[static_cast<size_t>(at)];
               side->start(at / blocks_, i % groups, i % groups + 1, to);
               side->pack(at / blocks_, at % blocks_, i % groups, i % groups + 1, &space, to);
             }
           }});
    });
  (*stages)[kCompute].push_back({tasks(), 1, [this](int worker, int64_t low, int64_t high) {
                                   auto& w = workspaces_[static_cast<size_t>(worker)];
                                   if (w == nullptr) w = std::make_unique<Workspace>(*this);
                                   for (int64_t i = low; i < high; ++i) run_task(task(i), w.get());
                                 }});
  if (splits_ == 1) return;
  (*stages)[kCombine].push_back({p_.G * rows_, 1, [this](int, int64_t low, int64_t high) {
                                   for (int64_t i = low; i < high; ++i) combine(i);
                                 }});
}

AlongK::Task AlongK::task(int64_t i) const {
  const int64_t row = i % row_ranges_, panel = i / row_ranges_ % panel_ranges_;
  i /= panel_ranges_ * row_ranges_;
  const int64_t tiles = ceil_div(rows_, kTileRows);
  return {i / splits_,
          i % splits_,
          tiles * row / row_ranges_ * kTileRows,
          std::min(tiles * (row + 1) / row_ranges_ * kTileRows, rows_),
          panels_ * panel / panel_ranges_,
          panels_ * (panel + 1) / panel_ranges_};
}

void AlongK::run_task(const Task& t, Workspace* w) const {
  const int64_t first = t.split * p_.blocks_per_split;
  const int64_t end = std::min(first + p_.blocks_per_split, blocks_);
  if (shared_) {
    const auto at = static_cast<size_t>(t.g * blocks_ + first);
    multiply(t, first, end, &shared_a_[at], &shared_b_[at], w);
    finish(t, shared_a_[at], shared_b_[at], w);
  } else {
    const int64_t groups = a_.groups(t.row_end - t.row), panels = t.panel_end - t.panel;
    w->a.first = t.row;
    w->a.end = t.row_end;
    w->b.first = t.panel * kPanelColumns;
    w->b.end = std::min(t.panel_end * kPanelColumns, n_);
    a_.start(t.g, 0, groups, &w->a);
    b_.start(t.g, 0, panels, &w->b);
    for (int64_t block = first; block < end; ++block) {
      a_.pack(t.g, block, 0, groups, &w->space, &w->a);
      b_.pack(t.g, block, 0, panels, &w->space, &w->b);
      multiply(t, block, block + 1, &w->a, &w->b, w);
    }
    finish(t, w->a, w->b, w);
  }
  report_lengths(t.g, w->lengths);
}

// Adds the products of blocks [first, end), whose operands follow a and b.
void AlongK::multiply(const Task& t, int64_t first, int64_t end, const Packed* a, const Packed* b,
                      Workspace* w) const {
  const float* in[kTileRows];
  float* out[kTileRows];
  CellArgs cell{};
  cell.a_row = 1;
  cell.a_pair = kGroupRows;
  cell.columns = kPanelColumns;
  cell.in = in;
  cell.out = out;
  cell.memory = w->memory;
  // The rows of a position stay in the first two caches.
  for (int64_t p = 0; p < positions_; ++p)
    for (int64_t panel = t.panel; panel < t.panel_end; ++panel)
      for (int64_t block = first; block < end; ++block) {
        const TiledOperand::Cell of_b = b_.cell(b[block - first], p, panel * kPanelColumns);
        cell.narrow = static_cast<int32_t>(columns(panel));
        cell.pairs = static_cast<int32_t>(ceil_div(a_.size(block), 2));
        cell.b = of_b.words;
        cell.column_scales = of_b.scales;
        for (int64_t row = t.row; row < t.row_end; row += kTileRows) {
          const TiledOperand::Cell of_a = a_.cell(a[block - first], p, row);
          cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, t.row_end - row));
          cell.a = of_a.words;
          cell.row_scales = of_a.scales;
          float* const to = sums(*w, t, panel, p, row - t.row);
          for (int i = 0; i < kTileRows; ++i) {
            out[i] = to + i * kPanelColumns;
            in[i] = block == t.split * p_.blocks_per_split ? kZeros : out[i];
          }
          prefetch(to + kTileRows * kPanelColumns);
          run_cell(&cell, *of_a.norms, *of_b.norms, a_.size(block), w->lengths);
        }
      }
}

// Transforms the sums back, and writes them or keeps them as a part of the sum.
void AlongK::finish(const Task& t, const Packed& a, const Packed& b, Workspace* w) const {
  static constexpr int32_t kNone[kPanelColumns] = {};
  float *to[kMostTaps * kMostTaps], *out[kMostTaps * kMostTaps];
  for (int64_t panel = t.panel; panel < t.panel_end; ++panel) {
    const int64_t n0 = panel * kPanelColumns, count = columns(panel);
    const int64_t width = round_up(count, kColumnQuantum);
    const auto local = static_cast<size_t>(n0 - b.first);
    const int32_t* const bases = &b.bases[local];
    const char* const lost = &b.lost[local];
    const bool any_lost = std::any_of(lost, lost + count, [](char x) { return x != 0; });
    for (int64_t row = t.row; row < t.row_end; ++row) {
      Point point;
      results_.points.points(row, row + 1, Point{c_g_.offset(t.g), {}}, &point);
      for (int64_t i = 0; i < taps_; ++i) {
        to[i] = c_ + point.offset + results_.elements[static_cast<size_t>(i)].offset + n0;
        out[i] = splits_ > 1      ? partial(t.split, t.g, row, i) + n0
                 : count == width ? to[i]
                                  : w->bounce[i];
      }
      const auto at = static_cast<size_t>(row - a.first);
      const int32_t base = a.bases[at];
      const bool scaled = splits_ == 1 && all_normal(base, bases, count);
      kernels_.transform_back({tile_, Transform::kTaps, sums(*w, t, panel, 0, row - t.row),
                               sums_stride(), static_cast<int>(width), scaled ? base : 0,
                               scaled ? bases : kNone, out, false});
      if (splits_ > 1) continue;
      for (int64_t i = 0; i < taps_; ++i) {
        if (out[i] != to[i]) std::copy_n(out[i], count, to[i]);
        if (!scaled) scale(base, bases, count, to[i]);
        if (a.lost[at] != 0 || any_lost) lose(a.lost[at] != 0, lost, count, to[i]);
      }
    }
  }
}

// Adds up the splits of a row of G x rows.
void AlongK::combine(int64_t index) const {
  const int64_t g = index / rows_, row = index % rows_;
  const auto size = static_cast<size_t>(n_);
  std::vector<int32_t> bases(size);
  std::vector<char> lost(size);
  int32_t row_base;
  char row_lost;
  a_.find_bases(g, row, row + 1, &row_base, &row_lost);
  b_.find_bases(g, 0, n_, bases.data(), lost.data());
  Point point;
  results_.points.points(row, row + 1, Point{c_g_.offset(g), {}}, &point);
  const bool normal = all_normal(row_base, bases.data(), n_);
  std::vector<float> factors(size);
  if (normal)
    for (size_t i = 0; i < size; ++i) factors[i] = power_of_two(row_base + bases[i]);
  const bool any_lost =
      row_lost != 0 || std::any_of(lost.begin(), lost.end(), [](char x) { return x != 0; });
  for (int64_t i = 0; i < taps_; ++i) {
    float* const to = c_ + point.offset + results_.elements[static_cast<size_t>(i)].offset;
    kernels_.combine(partial(0, g, row, i), partial(1, g, row, i) - partial(0, g, row, i), splits_,
                     n_, nullptr, 1.0f, to);
    if (normal)
      for (size_t j = 0; j < size; ++j) to[j] *= factors[j];
    else
      scale(row_base, bases.data(), n_, to);
    if (any_lost) lose(row_lost != 0, lost.data(), n_, to);
  }
}

}  // namespace

std::unique_ptr<Job> make_winograd_along_k(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads) {
  return std::make_unique<AlongK>(part, operands, chains, kernels, threads);
}

}  // namespace dfpjax
