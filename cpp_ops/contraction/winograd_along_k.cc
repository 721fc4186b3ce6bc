// Winograd tiles along K (wgrad). Stage 1 finds the units of rows and columns. A task of stage 2
// takes some rows and columns of one split: block by block, it transforms both operands and adds up
// their products at each position. Stage 3 adds up the splits.

#include "contraction/alignment.h"
#include "contraction/packing.h"
#include "contraction/running.h"
#include "contraction/tiled_operand.h"
#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

alignas(64) constexpr float kZeros[kPanelColumns] = {};
constexpr int64_t kTaskTiles = 43;  // of rows
constexpr int64_t kTaskPanels = 4;
constexpr int64_t kWordsOfB = kBlockOfTiles / 2 * kPanelColumns + 16;  // as of spread()

// Sums come from the third cache, too late for a cell that asks for them at its end.
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
  struct Task {
    int64_t g, split, row, row_end, panel, panel_end;  // rows are multiples of kTileRows
  };
  struct Workspace {
    explicit Workspace(const AlongK& t);
    PatchSpace space;
    Scratch a, b;                     // [position][pair][row or column]
    std::vector<int32_t> of_a, of_b;  // exponents [position][row or column]
    std::vector<int32_t> row_bases, column_bases;
    std::vector<char> lost_rows, lost_columns;
    std::vector<Norms> a_norms, b_norms;  // [position][tile or panel]
    Scratch row_scales, column_scales;    // [position][row or column]
    Scratch sums;                         // [panel][position][row][column]
    alignas(64) float memory[kTileRows * kPanelColumns];
    alignas(64) float bounce[9][kPanelColumns];
    int64_t lengths[kChainLengths] = {};
  };

  Task task(int64_t index) const;
  void run_task(const Task& t, Workspace* w) const;
  void pack(const Task& t, int64_t block, Workspace* w) const;
  void multiply(const Task& t, int64_t block, Workspace* w) const;
  void finish(const Task& t, Workspace* w) const;
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
         &Dim::stride_a, rows_, blocks_, tile_, Transform::kInput, kernels),
      b_(part.grid_b, operands.b, operands.eb, part.base_b, winograd_.patches_of_b(false), part.g,
         &Dim::stride_b, n_, blocks_, tile_, Transform::kCotangent, kernels),
      workspaces_(static_cast<size_t>(threads)) {
  const int64_t tiles = ceil_div(rows_, kTileRows);
  row_ranges_ = ceil_div(tiles, kTaskTiles);
  panel_ranges_ = ceil_div(panels_, kTaskPanels);
  // Each range of rows transforms the columns again, and the other way round.
  const auto tasks = [&] { return p_.G * splits_ * row_ranges_ * panel_ranges_; };
  while (tasks() < threads_ && (row_ranges_ < tiles || panel_ranges_ < panels_)) {
    // Halve the larger side.
    const int64_t rows = rows_ / row_ranges_, wide = n_ / panel_ranges_;
    if (panel_ranges_ < panels_ && (wide >= rows || row_ranges_ == tiles))
      panel_ranges_ = std::min(2 * panel_ranges_, panels_);
    else
      row_ranges_ = std::min(2 * row_ranges_, tiles);
  }
  task_rows_ = ceil_div(tiles, row_ranges_) * kTileRows;
  task_panels_ = ceil_div(panels_, panel_ranges_);
  if (splits_ > 1)
    partial_ = Scratch::array<float>({splits_, p_.G, rows_, taps_, round_up(n_, kColumnQuantum)});
}

AlongK::Workspace::Workspace(const AlongK& t)
    : a(Scratch::array<int32_t>(
          {t.positions_, spread(kBlockOfTiles / 2 * round_up(t.task_rows_, kColumnQuantum))})),
      b(Scratch::array<int32_t>({t.task_panels_, t.positions_, kWordsOfB})),
      of_a(static_cast<size_t>(t.positions_ * round_up(t.task_rows_, kColumnQuantum))),
      of_b(static_cast<size_t>(t.task_panels_ * t.positions_ * kPanelColumns)),
      row_bases(static_cast<size_t>(t.task_rows_)),
      column_bases(static_cast<size_t>(t.task_panels_ * kPanelColumns)),
      lost_rows(row_bases.size()),
      lost_columns(column_bases.size()),
      a_norms(static_cast<size_t>(t.positions_ * t.task_rows_ / kTileRows)),
      b_norms(static_cast<size_t>(t.positions_ * t.task_panels_)),
      row_scales(Scratch::array<float>({t.positions_, t.task_rows_})),
      column_scales(Scratch::array<float>({t.task_panels_, t.positions_, kPanelColumns})),
      sums(Scratch::array<float>({t.task_panels_, t.positions_, t.sums_stride()})) {}

void AlongK::enlist(std::vector<Stage>* stages) {
  for (TiledOperand* side : {&a_, &b_})
    (*stages)[kPrepare].push_back({p_.G * blocks_, 1, [this, side](int, int64_t low, int64_t high) {
                                     PatchSpace space;
                                     for (int64_t i = low; i < high; ++i)
                                       side->find_units(i / blocks_, i % blocks_, &space);
                                   }});
  (*stages)[kCompute].push_back({p_.G * splits_ * row_ranges_ * panel_ranges_, 1,
                                 [this](int worker, int64_t low, int64_t high) {
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
  const int64_t panel = i % panel_ranges_, row = i / panel_ranges_ % row_ranges_;
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
  a_.find_bases(t.g, t.row, t.row_end, w->row_bases.data(), w->lost_rows.data());
  const int64_t n0 = t.panel * kPanelColumns, n1 = std::min(t.panel_end * kPanelColumns, n_);
  std::fill(w->column_bases.begin(), w->column_bases.end(), 0);
  b_.find_bases(t.g, n0, n1, w->column_bases.data(), w->lost_columns.data());
  const int64_t first = t.split * p_.blocks_per_split;
  const int64_t end = std::min(first + p_.blocks_per_split, blocks_);
  for (int64_t block = first; block < end; ++block) {
    pack(t, block, w);
    multiply(t, block, w);
  }
  finish(t, w);
  report_lengths(t.g, w->lengths);
}

// Transforms a block of both operands.
void AlongK::pack(const Task& t, int64_t block, Workspace* w) const {
  const int64_t rows = t.row_end - t.row, tiles = task_rows_ / kTileRows;
  const int64_t stride = round_up(task_rows_, kColumnQuantum);
  const auto pairs = static_cast<int>(ceil_div(a_.size(block), 2));
  const int64_t words = spread(kBlockOfTiles / 2 * stride);
  if (rows < stride) std::fill_n(w->a.as<int32_t>(), positions_ * words, 0);
  a_.pack(t.g, block, t.row, t.row_end, &w->space, w->a.as<int32_t>(), words, stride,
          w->of_a.data());
  for (int64_t p = 0; p < positions_; ++p) {
    kernels_.norms_pairs(w->a.as<int32_t>() + p * words, stride, static_cast<int>(rows), pairs,
                         kTileRows, &w->a_norms[static_cast<size_t>(p * tiles)]);
    scales_below(&w->of_a[static_cast<size_t>(p * stride)], w->row_bases.data(), rows,
                 w->row_scales.as<float>() + p * task_rows_);
  }
  for (int64_t panel = t.panel; panel < t.panel_end; ++panel) {
    const int64_t n = panel * kPanelColumns, local = panel - t.panel;
    int32_t* const out = w->b.as<int32_t>() + local * positions_ * kWordsOfB;
    if (columns(panel) < kPanelColumns) std::fill_n(out, positions_ * kWordsOfB, 0);
    int32_t* const exponents = &w->of_b[static_cast<size_t>(local * positions_ * kPanelColumns)];
    b_.pack(t.g, block, n, n + columns(panel), &w->space, out, kWordsOfB, kPanelColumns, exponents);
    for (int64_t p = 0; p < positions_; ++p) {
      kernels_.norms_pairs(out + p * kWordsOfB, kPanelColumns, static_cast<int>(columns(panel)),
                           pairs, kPanelColumns,
                           &w->b_norms[static_cast<size_t>(local * positions_ + p)]);
      std::fill(exponents + p * kPanelColumns + columns(panel), exponents + (p + 1) * kPanelColumns,
                kAbsent);
      scales_below(exponents + p * kPanelColumns,
                   &w->column_bases[static_cast<size_t>(local * kPanelColumns)], kPanelColumns,
                   w->column_scales.as<float>() + (local * positions_ + p) * kPanelColumns);
    }
  }
}

void AlongK::multiply(const Task& t, int64_t block, Workspace* w) const {
  const int64_t rows = t.row_end - t.row, tiles = task_rows_ / kTileRows;
  const int64_t stride = round_up(task_rows_, kColumnQuantum);
  const bool first = block == t.split * p_.blocks_per_split;
  const float* in[kTileRows];
  float* out[kTileRows];
  CellArgs cell{};
  cell.a_row = 1;
  cell.a_pair = stride;
  cell.pairs = static_cast<int32_t>(ceil_div(a_.size(block), 2));
  cell.in = in;
  cell.out = out;
  cell.memory = w->memory;
  // The rows of a position stay in the first two caches.
  for (int64_t p = 0; p < positions_; ++p) {
    for (int64_t panel = t.panel; panel < t.panel_end; ++panel) {
      const int64_t at = (panel - t.panel) * positions_ + p;
      cell.columns = kPanelColumns;
      cell.narrow = static_cast<int32_t>(columns(panel));
      cell.b = w->b.as<int32_t>() + at * kWordsOfB;
      cell.column_scales = w->column_scales.as<float>() + at * kPanelColumns;
      for (int64_t row = 0; row < rows; row += kTileRows) {
        cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, rows - row));
        cell.a = w->a.as<int32_t>() + p * spread(kBlockOfTiles / 2 * stride) + row;
        cell.row_scales = w->row_scales.as<float>() + p * task_rows_ + row;
        float* const to = sums(*w, t, panel, p, row);
        for (int i = 0; i < kTileRows; ++i) {
          out[i] = to + i * kPanelColumns;
          in[i] = first ? kZeros : out[i];
        }
        prefetch(to + kTileRows * kPanelColumns);
        run_cell(&cell, w->a_norms[static_cast<size_t>(p * tiles + row / kTileRows)],
                 w->b_norms[static_cast<size_t>(at)], a_.size(block), w->lengths);
      }
    }
  }
}

// Transforms the sums back, and writes them or keeps them as a part of the sum.
void AlongK::finish(const Task& t, Workspace* w) const {
  static constexpr int32_t kNone[kPanelColumns] = {};
  float *to[9], *out[9];
  for (int64_t panel = t.panel; panel < t.panel_end; ++panel) {
    const int64_t n0 = panel * kPanelColumns, count = columns(panel);
    const int64_t width = round_up(count, kColumnQuantum);
    const auto local = static_cast<size_t>((panel - t.panel) * kPanelColumns);
    const int32_t* const bases = &w->column_bases[local];
    const char* const lost = &w->lost_columns[local];
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
      const auto at = static_cast<size_t>(row - t.row);
      const int32_t base = w->row_bases[at];
      const bool scaled = splits_ == 1 && all_normal(base, bases, count);
      kernels_.transform_back({tile_, Transform::kTaps, sums(*w, t, panel, 0, row - t.row),
                               sums_stride(), static_cast<int>(width), scaled ? base : 0,
                               scaled ? bases : kNone, out, false});
      if (splits_ > 1) continue;
      for (int64_t i = 0; i < taps_; ++i) {
        if (out[i] != to[i]) std::copy_n(out[i], count, to[i]);
        if (!scaled) scale(base, bases, count, to[i]);
        if (w->lost_rows[at] != 0 || any_lost) lose(w->lost_rows[at] != 0, lost, count, to[i]);
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
