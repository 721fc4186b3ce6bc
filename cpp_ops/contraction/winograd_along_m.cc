// Winograd tiles along M (fprop and dgrad). Stage 1 transforms the kernels. A task of stage 2
// transforms the patches of some rows, multiplies them by the kernels of one panel after the other,
// and transforms the sums back while they are in the second-level cache.
#include <limits>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "contraction/alignment.h"
#include "contraction/certificate.h"
#include "contraction/packing.h"
#include "contraction/scaling.h"
#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

alignas(64) constexpr float kZeros[kPanelColumns] = {};
constexpr int64_t kTaskRows = 72;  // for F(4, 3) along two axes: 36 positions
constexpr int64_t kFewestRows = 48;  // unless some threads have nothing to do
constexpr int64_t kValues = kBlock + 16;  // a distance as of spread()
constexpr int64_t kRowsAtOnce = 16;  // of B where channels are contiguous

class AlongM : public Job {
 public:
  AlongM(const Part& part, const Operands& operands, const Chains& chains,
         const ContractionKernels& kernels, int threads);
  void enlist(std::vector<Stage>* stages) override;

 private:
  // Room of one thread.
  struct KernelSpace {
    PatchReader::Found found;
    std::vector<const int16_t*> from;
    std::vector<float> scales;
    Scratch values = Scratch::array<float>({kPatchBuffer});
    std::vector<int16_t> rows;
  };
  struct Workspace {
    explicit Workspace(const AlongM& t);
    PatchReader::Found found;
    std::vector<const int16_t*> from;
    std::vector<float> scales;
    Scratch values;                           // [position][kBlock]
    Scratch mantissas;                        // [block][position][row][channel]
    std::vector<Norms> norms;                 // [block][position][tile]
    std::vector<int32_t> units, exponents;    // [block][row], [block][position][row]
    std::vector<int32_t> bases;               // [row]
    std::vector<bool> lost;                   // [row]
    Scratch row_scales;                       // [block][position][row]
    Scratch sums;                             // [position][row][column]
    std::vector<Point> results;
    alignas(64) float column_scales[kPanelColumns];
    alignas(64) int32_t column_bases[kPanelColumns];
    alignas(64) float memory[kTileRows * kPanelColumns];
    alignas(64) float bounce[16][kPanelColumns];
    int64_t lengths[kChainLengths] = {};
  };
  struct Task {
    int64_t g, row, rows, panel, panel_end;
  };

  void pack_panel(int64_t index, KernelSpace* space);
  void pack_across(int64_t g, int64_t panel, int64_t block, KernelSpace* space);
  void pack_along(int64_t g, int64_t panel, int64_t block, KernelSpace* space);
  Task task(int64_t index) const;
  void run_task(const Task& t, Workspace* w) const;
  void transform_rows(const Task& t, Workspace* w) const;
  void transform_row(const Task& t, int64_t row, int64_t block, Workspace* w) const;
  void multiply(const Task& t, int64_t panel, Workspace* w) const;
  void finish(const Task& t, int64_t panel, Workspace* w) const;
  void repair(int64_t row_base, bool lost, int64_t g, int64_t panel, float* const* out) const;

  int64_t block_size(int64_t block) const { return std::min<int64_t>(kBlock, k_ - block * kBlock); }
  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, n_ - panel * kPanelColumns);
  }
  int64_t width(int64_t panel) const { return round_up(columns(panel), kColumnQuantum); }
  int64_t words_of(int64_t block) const {  // of a panel and position
    return PackerB::block_words(kPanelColumns, block_size(block));
  }
  // Index of [g][panel][block][position].
  int64_t index(int64_t g, int64_t panel, int64_t block) const {
    return ((g * panels_ + panel) * blocks_ + block) * positions_;
  }
  int32_t* words(int64_t g, int64_t panel, int64_t block) const {
    return words_.as<int32_t>() + index(g, panel, block) * block_words_;
  }
  int64_t stride(int64_t block) const { return round_up(block_size(block), kSegment); }
  // Between positions.
  int64_t position_stride(int64_t block) const { return 2 * spread(task_rows_ * stride(block) / 2); }
  int64_t sums_stride() const { return spread(task_rows_ * kPanelColumns); }
  int16_t* mantissas(const Workspace& w, int64_t block, int64_t position, int64_t row) const {
    return w.mantissas.as<int16_t>() + block * positions_ * position_stride(0) +
           position * position_stride(block) + row * stride(block);
  }

  const Part& p_;
  const WinogradPart winograd_;
  const Chains chains_;
  const ContractionKernels& kernels_;
  float* const c_;
  const WinogradTile tile_;
  const int64_t positions_, k_, n_, blocks_, panels_, block_words_;
  const bool along_k_;  // B is contiguous along the channels
  const PatchReader a_, b_;
  const Axis a_g_, b_g_, c_g_;
  const Patchwork results_;
  const int64_t rows_;
  const int threads_;
  int64_t task_rows_, row_blocks_, panel_ranges_;
  bool stream_;
  Scratch words_, exponents_, units_;  // of B: exponents [..position][column], units [..block][..]
  std::vector<Norms> norms_;
  std::vector<char> lost_;  // [g][panel][column]
  std::vector<std::unique_ptr<Workspace>> workspaces_;
};

AlongM::AlongM(const Part& part, const Operands& operands, const Chains& chains,
               const ContractionKernels& kernels, int threads)
    : p_(part),
      winograd_(part),
      chains_(chains),
      kernels_(kernels),
      c_(operands.c + part.base_c),
      tile_(winograd_.tile()),
      positions_(tile_.positions()),
      k_(winograd_.channels().extent),
      n_(part.n.front().extent),
      blocks_(ceil_div(k_, kBlock)),
      panels_(ceil_div(n_, kPanelColumns)),
      block_words_(spread(PackerB::block_words(kPanelColumns, std::min<int64_t>(k_, kBlock)))),
      along_k_(part.n.front().stride_b != 1),
      a_(part.grid_a, operands.a, operands.ea, part.base_a, winograd_.patches_of_a(), k_),
      b_(part.grid_b, operands.b, operands.eb, part.base_b, winograd_.patches_of_b(along_k_),
         std::max(k_, n_)),
      a_g_(part.g, &Dim::stride_a, nullptr),
      b_g_(part.g, &Dim::stride_b, nullptr),
      c_g_(part.g, &Dim::stride_c, nullptr),
      results_(winograd_.results()),
      rows_(results_.points.extent()),
      threads_(threads),
      workspaces_(static_cast<size_t>(threads)) {
  const int64_t share = kMostPositions / positions_;
  const int64_t most_rows = kTaskRows * share;
  // Blocks of rows of nearly equal size, in whole tiles of rows. Each reads all kernels.
  const int64_t tiles = ceil_div(rows_, kTileRows);
  const int64_t wanted = std::clamp<int64_t>(
      p_.G * rows_ / (kFewestRows * share), threads_, 2 * threads_);
  const int64_t blocks =
      std::clamp<int64_t>(ceil_div(wanted, p_.G), ceil_div(rows_, most_rows), tiles);
  task_rows_ = ceil_div(tiles, std::max(blocks, ceil_div(rows_, most_rows))) * kTileRows;
  row_blocks_ = ceil_div(rows_, task_rows_);
  // Each range of panels transforms the rows again.
  panel_ranges_ = std::clamp<int64_t>(2 * threads_ / (p_.G * row_blocks_), 1, panels_);
  // All outputs are then multiples of kColumnQuantum apart.
  stream_ = p_.G * p_.M * n_ * int64_t{sizeof(float)} >= kStreamBytes && n_ % kColumnQuantum == 0 &&
            reinterpret_cast<uintptr_t>(c_) % 64 == 0 && p_.g.empty();
  const int64_t panels = p_.G * panels_ * blocks_;
  words_ = Scratch::array<int32_t>({panels, positions_, block_words_});
  exponents_ = Scratch::array<int32_t>({panels, positions_, kPanelColumns});
  units_ = Scratch::array<int32_t>({panels, kPanelColumns});
  norms_.resize(static_cast<size_t>(panels * positions_));
  lost_.resize(static_cast<size_t>(p_.G * panels_ * kPanelColumns));
}

AlongM::Workspace::Workspace(const AlongM& t)
    : values(Scratch::array<float>({t.positions_, kValues})),
      mantissas(Scratch::array<int16_t>({t.blocks_, t.positions_, t.position_stride(0)})),
      norms(static_cast<size_t>(t.blocks_ * t.positions_ * ceil_div(t.task_rows_, kTileRows))),
      units(static_cast<size_t>(t.blocks_ * t.task_rows_)),
      exponents(static_cast<size_t>(t.blocks_ * t.positions_ * t.task_rows_)),
      bases(static_cast<size_t>(t.task_rows_)),
      lost(static_cast<size_t>(t.task_rows_)),
      row_scales(Scratch::array<float>({t.blocks_, t.positions_, t.task_rows_})),
      sums(Scratch::array<float>({t.positions_, t.sums_stride()})) {}

void AlongM::enlist(std::vector<Stage>* stages) {
  const int64_t panels = p_.G * panels_;
  (*stages)[kPrepare].push_back({panels, 1, [this](int, int64_t low, int64_t high) {
                                   KernelSpace space;
                                   for (int64_t i = low; i < high; ++i) pack_panel(i, &space);
                                 }});
  (*stages)[kCompute].push_back({p_.G * row_blocks_ * panel_ranges_, 1,
                                 [this](int worker, int64_t low, int64_t high) {
                                   auto& w = workspaces_[static_cast<size_t>(worker)];
                                   if (w == nullptr) w = std::make_unique<Workspace>(*this);
                                   for (int64_t i = low; i < high; ++i) run_task(task(i), w.get());
#if defined(__x86_64__)
                                   if (stream_) _mm_sfence();
#endif
                                 }});
}

// Transforms the kernels of a panel.
void AlongM::pack_panel(int64_t i, KernelSpace* space) {
  const int64_t g = i / panels_, panel = i % panels_;
  for (int64_t block = 0; block < blocks_; ++block) {
    std::fill_n(units_.as<int32_t>() + (i * blocks_ + block) * kPanelColumns, kPanelColumns,
                kAbsent);
    along_k_ ? pack_along(g, panel, block, space) : pack_across(g, panel, block, space);
    const auto pairs = static_cast<int>(ceil_div(block_size(block), 2));
    for (int64_t p = 0; p < positions_; ++p)
      kernels_.norms_pairs(words(g, panel, block) + p * block_words_, width(panel),
                           static_cast<int>(columns(panel)), pairs, kPanelColumns,
                           &norms_[static_cast<size_t>(index(g, panel, block) + p)]);
  }
}

// Columns are contiguous.
void AlongM::pack_across(int64_t g, int64_t panel, int64_t block, KernelSpace* s) {
  const int64_t k = block_size(block), first = panel * kPanelColumns, origin = b_g_.offset(g);
  const int64_t at = index(g, panel, block) / positions_;
  b_.find(origin, block * kBlock, k, &s->found);
  s->from.resize(static_cast<size_t>(k * b_.elements()));
  s->scales.resize(s->from.size());
  if (columns(panel) < width(panel))
    std::fill_n(words(g, panel, block), positions_ * block_words_, 0);
  for (int64_t lane = first; lane < first + columns(panel);) {
    const PatchReader::Piece piece =
        b_.piece(origin, lane, first + columns(panel), kPanelColumns);
    const int64_t count = piece.end - lane, column = lane - first;
    bool lost = false;
    const int32_t unit = b_.unit(s->found, 0, k, lane, &lost);
    b_.scale(s->found, 0, k, lane, unit, s->from.data(), s->scales.data());
    const Patches patches{tile_,
                          Transform::kKernel,
                          s->from.data(),
                          s->scales.data(),
                          static_cast<int>(k),
                          static_cast<int>(count)};
    int32_t* const exponents =
        exponents_.as<int32_t>() + at * positions_ * kPanelColumns + column;
    kernels_.pack_patches(patches, normalization(tile_), s->values.as<float>(),
                          words(g, panel, block) + column, block_words_, width(panel), exponents,
                          kPanelColumns);
    add_unit(unit, static_cast<int>(positions_), count, kPanelColumns, exponents);
    for (int64_t i = 0; i < count; ++i) {
      units_.as<int32_t>()[at * kPanelColumns + column + i] = unit;
      if (lost) lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns + column + i)] = 1;
    }
    lane = piece.end;
  }
}

// Channels are contiguous: columns are transformed one by one, and their words transposed.
void AlongM::pack_along(int64_t g, int64_t panel, int64_t block, KernelSpace* s) {
  const int64_t k = block_size(block), first = panel * kPanelColumns, origin = b_g_.offset(g);
  const int64_t at = index(g, panel, block) / positions_, row = stride(block);
  const int64_t padded = round_up(k, kColumnQuantum);
  s->from.resize(static_cast<size_t>(b_.elements()));
  s->scales.resize(s->from.size());
  float* const values = s->values.as<float>();
  std::fill_n(values, positions_ * kValues, 0.0f);
  s->rows.assign(static_cast<size_t>(positions_ * kRowsAtOnce * row + kSlack), 0);
  b_.find(origin, first, columns(panel), &s->found);
  for (int64_t start = 0; start < columns(panel); start += kRowsAtOnce) {
    const int64_t end = std::min(start + kRowsAtOnce, columns(panel));
    if (end < start + kRowsAtOnce) std::fill(s->rows.begin(), s->rows.end(), int16_t{0});
    for (int64_t column = start; column < end; ++column) {
      bool lost = false;
      int32_t unit = kAbsent;
      const auto for_pieces = [&](auto f) {
        for (int64_t lane = block * kBlock; lane < block * kBlock + k;) {
          const auto piece = b_.piece(origin, lane, block * kBlock + k, kBlock);
          f(lane, piece.end - lane);
          lane = piece.end;
        }
      };
      for_pieces([&](int64_t lane, int64_t) {
        unit = std::max(unit, b_.unit(s->found, column, 1, lane, &lost));
      });
      for_pieces([&](int64_t lane, int64_t count) {
        b_.scale(s->found, column, 1, lane, unit, s->from.data(), s->scales.data());
        kernels_.transform_patch(
            {tile_, Transform::kKernel, s->from.data(), s->scales.data(), 1,
             static_cast<int>(count)},
            values + (lane - block * kBlock), kValues);
      });
      units_.as<int32_t>()[at * kPanelColumns + column] = unit;
      if (lost) lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns + column)] = 1;
      int32_t* const exponents =
          exponents_.as<int32_t>() + at * positions_ * kPanelColumns + column;
      kernels_.quantize_rows(values, kValues, normalization(tile_), static_cast<int>(positions_),
                             static_cast<int>(padded), s->rows.data() + (column - start) * row,
                             kRowsAtOnce * row, exponents, kPanelColumns);
      add_unit(unit, static_cast<int>(positions_), 1, kPanelColumns, exponents);
    }
    for (int64_t p = 0; p < positions_; ++p)
      kernels_.transpose(s->rows.data() + p * kRowsAtOnce * row, row,
                         static_cast<int>(ceil_div(k, 2)),
                         words(g, panel, block) + p * block_words_ + start, width(panel));
  }
}

AlongM::Task AlongM::task(int64_t i) const {
  const int64_t range = i % panel_ranges_, rows = i / panel_ranges_ % row_blocks_;
  const int64_t row = rows * task_rows_;
  return {i / panel_ranges_ / row_blocks_, row, std::min(task_rows_, rows_ - row),
          panels_ * range / panel_ranges_, panels_ * (range + 1) / panel_ranges_};
}

void AlongM::run_task(const Task& t, Workspace* w) const {
  w->results.resize(static_cast<size_t>(t.rows));
  Point origin = results_.origin;
  origin.offset += c_g_.offset(t.g);
  results_.points.points(t.row, t.row + t.rows, origin, w->results.data());
  transform_rows(t, w);
  for (int64_t panel = t.panel; panel < t.panel_end; ++panel) {
    multiply(t, panel, w);
    finish(t, panel, w);
  }
  if (chains_.lengths == nullptr) return;
  for (int i = 0; i < kChainLengths; ++i) {
    chains_.lengths->add(p_, t.g, i, w->lengths[i]);
    w->lengths[i] = 0;
  }
}

void AlongM::transform_rows(const Task& t, Workspace* w) const {
  a_.find(a_g_.offset(t.g), t.row, t.rows, &w->found);
  w->from.resize(static_cast<size_t>(a_.elements()));
  w->scales.resize(w->from.size());
  w->lost.assign(w->lost.size(), false);
  const int64_t tiles = ceil_div(t.rows, kTileRows);
  std::fill(w->bases.begin(), w->bases.end(), kAbsent);
  for (int64_t block = 0; block < blocks_; ++block) {
    for (int64_t row = 0; row < t.rows; ++row) {
      transform_row(t, row, block, w);
      int32_t& base = w->bases[static_cast<size_t>(row)];
      base = std::max(base, w->units[static_cast<size_t>(block * task_rows_ + row)]);
    }
    for (int64_t p = 0; p < positions_; ++p)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * kTileRows;
        kernels_.norms_rows(
            mantissas(*w, block, p, first), stride(block),
            static_cast<int>(std::min<int64_t>(kTileRows, t.rows - first)),
            static_cast<int>(stride(block)),
            &w->norms[static_cast<size_t>((block * positions_ + p) * (task_rows_ / kTileRows) +
                                          tile)]);
      }
  }
  for (int32_t& base : w->bases) base = base == kAbsent ? 0 : base;
  for (int64_t i = 0; i < blocks_ * positions_; ++i)
    scales_below(&w->exponents[static_cast<size_t>(i * task_rows_)], w->bases.data(), t.rows,
                 w->row_scales.as<float>() + i * task_rows_);
}

void AlongM::transform_row(const Task& t, int64_t row, int64_t block, Workspace* w) const {
  const int64_t k0 = block * kBlock, k = block_size(block), origin = a_g_.offset(t.g);
  const int64_t padded = round_up(k, kColumnQuantum);
  float* const values = w->values.as<float>();
  bool lost = false;
  int32_t unit = kAbsent;
  for (int64_t lane = k0; lane < k0 + k;) {
    unit = std::max(unit, a_.unit(w->found, row, 1, lane, &lost));
    lane = a_.piece(origin, lane, k0 + k, kBlock).end;
  }
  for (int64_t lane = k0; lane < k0 + k;) {
    const auto piece = a_.piece(origin, lane, k0 + k, kBlock);
    a_.scale(w->found, row, 1, lane, unit, w->from.data(), w->scales.data());
    kernels_.transform_patch({tile_, Transform::kInput, w->from.data(), w->scales.data(), 1,
                              static_cast<int>(piece.end - lane)},
                             values + (lane - k0), kValues);
    lane = piece.end;
  }
  w->units[static_cast<size_t>(block * task_rows_ + row)] = unit;
  if (lost) w->lost[static_cast<size_t>(row)] = true;
  int16_t* const to = mantissas(*w, block, 0, row);
  const int64_t distance = position_stride(block);
  if (padded > k)
    for (int64_t p = 0; p < positions_; ++p)
      std::fill(values + p * kValues + k, values + p * kValues + padded, 0.0f);
  int32_t* const exponents =
      &w->exponents[static_cast<size_t>(block * positions_ * task_rows_ + row)];
  kernels_.quantize_rows(values, kValues, kOnes, static_cast<int>(positions_),
                         static_cast<int>(padded), to, distance, exponents, task_rows_);
  add_unit(unit, static_cast<int>(positions_), 1, task_rows_, exponents);
  if (padded < stride(block))
    for (int64_t p = 0; p < positions_; ++p)
      std::fill(to + p * distance + padded, to + p * distance + stride(block), int16_t{0});
}

// Multiplies the transformed rows by the transformed kernels of a panel.
void AlongM::multiply(const Task& t, int64_t panel, Workspace* w) const {
  const int64_t tiles = ceil_div(t.rows, kTileRows);
  const int64_t first = index(t.g, panel, 0) / positions_;
  std::fill_n(w->column_bases, kPanelColumns, kAbsent);
  for (int64_t block = 0; block < blocks_; ++block) {
    const int32_t* const units = units_.as<int32_t>() + (first + block) * kPanelColumns;
    for (int i = 0; i < kPanelColumns; ++i)
      w->column_bases[i] = std::max(w->column_bases[i], units[i]);
  }
  for (int32_t& base : w->column_bases) base = base == kAbsent ? 0 : base;

  const float* in[kTileRows];
  float* out[kTileRows];
  CellArgs cell{};
  cell.columns = static_cast<int32_t>(width(panel));
  cell.narrow = static_cast<int32_t>(columns(panel));
  cell.a_pair = 1;
  cell.in = in;
  cell.out = out;
  cell.memory = w->memory;
  cell.column_scales = w->column_scales;
  for (int64_t block = 0; block < blocks_; ++block) {
    cell.a_row = stride(block) / 2;
    cell.pairs = static_cast<int32_t>(ceil_div(block_size(block), 2));
    for (int64_t p = 0; p < positions_; ++p) {
      const int64_t at = (first + block) * positions_ + p;
      scales_below(exponents_.as<int32_t>() + at * kPanelColumns, w->column_bases, width(panel),
                   w->column_scales);
      cell.b = words_.as<int32_t>() + at * block_words_;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile * kTileRows;
        cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, t.rows - row));
        cell.a = reinterpret_cast<const int32_t*>(mantissas(*w, block, p, row));
        cell.row_scales =
            w->row_scales.as<float>() + (block * positions_ + p) * task_rows_ + row;
        cell.chain = chain_pairs(
            w->norms[static_cast<size_t>((block * positions_ + p) * (task_rows_ / kTileRows) +
                                         tile)],
            norms_[static_cast<size_t>(at)]);
        float* const sums =
            w->sums.as<float>() + p * sums_stride() + row * kPanelColumns;
        for (int i = 0; i < kTileRows; ++i) {
          out[i] = sums + i * kPanelColumns;
          in[i] = block == 0 ? kZeros : out[i];
        }
        kernels_.cell(cell);
        if (chains_.lengths != nullptr)
          w->lengths[chain_index(cell.chain)] += cell.rows * columns(panel) * block_size(block);
      }
    }
  }
}

// Transforms the sums of a panel back and writes the results.
void AlongM::finish(const Task& t, int64_t panel, Workspace* w) const {
  const int64_t n0 = panel * kPanelColumns, count = columns(panel);
  const char* const lost = &lost_[static_cast<size_t>((t.g * panels_ + panel) * kPanelColumns)];
  const bool any_lost = std::any_of(lost, lost + count, [](char x) { return x != 0; });
  static constexpr int32_t kNone[kPanelColumns] = {};
  const size_t elements = results_.elements.size();
  float *to[16], *out[16];
  for (int64_t row = 0; row < t.rows; ++row) {
    const Point& point = w->results[static_cast<size_t>(row)];
    for (size_t i = 0; i < elements; ++i) {
      const Point& element = results_.elements[i];
      to[i] = exists(results_.bounds, point, element.coord) ? c_ + point.offset + element.offset + n0
                                                            : nullptr;
      out[i] = to[i] != nullptr && count < width(panel) ? w->bounce[i] : to[i];
    }
    const int32_t base = w->bases[static_cast<size_t>(row)];
    const bool normal = Bases::normal(base, w->column_bases, count);
    kernels_.transform_back({tile_, Transform::kOutput,
                             w->sums.as<float>() + row * kPanelColumns,
                             sums_stride(), static_cast<int>(width(panel)), normal ? base : 0,
                             normal ? w->column_bases : kNone, out, stream_});
    const bool row_lost = w->lost[static_cast<size_t>(row)];
    for (size_t i = 0; i < elements; ++i) {
      if (to[i] == nullptr) continue;
      if (out[i] != to[i]) std::copy_n(out[i], count, to[i]);
      if (!normal)
        for (int64_t j = 0; j < count; ++j)
          to[i][j] = scale_once(to[i][j], int64_t{base} + w->column_bases[j]);
      if (row_lost || any_lost)
        for (int64_t j = 0; j < count; ++j)
          if (row_lost || lost[j] != 0) to[i][j] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace

std::unique_ptr<Job> make_winograd_along_m(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads) {
  return std::make_unique<AlongM>(part, operands, chains, kernels, threads);
}

}  // namespace dfpjax
