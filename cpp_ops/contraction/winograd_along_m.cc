// Winograd tiles along M (fprop and dgrad). Stage 1 transforms the kernels, unless they are reused.
// A task of stage 2 transforms the patches of some rows, multiplies them by the kernels of one
// panel after the other, and transforms the sums back while they are in the second-level cache.
#include <memory>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "contraction/alignment.h"
#include "contraction/kept_operand.h"
#include "contraction/packing.h"
#include "contraction/transformed_kernels.h"
#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {
namespace {

alignas(64) constexpr float kZeros[kPanelColumns] = {};
constexpr int64_t kTaskRows = 72;    // for F(4, 3) along two axes: 36 positions
constexpr int64_t kFewestRows = 48;  // unless some threads have nothing to do

class AlongM : public WinogradJob {
 public:
  AlongM(const Part& part, const Operands& operands, const Chains& chains,
         const ContractionKernels& kernels, int threads, OperandReuse& reuse);
  void enlist(std::vector<Stage>* stages) override;

 private:
  struct Workspace {
    explicit Workspace(const AlongM& t);
    PatchSpace space;
    Scratch mantissas;                      // [block][position][row][channel]
    std::vector<Norms> norms;               // [block][position][tile]
    std::vector<int32_t> units, exponents;  // [block][row], [block][position][row]
    std::vector<int32_t> bases;             // [row]
    std::vector<bool> lost;                 // [row]
    Scratch row_scales;                     // [block][position][row]
    Scratch sums;                           // [position][row][column]
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

  Task task(int64_t index) const;
  void run_task(const Task& t, Workspace* w) const;
  void transform_rows(const Task& t, Workspace* w) const;
  void transform_row(int64_t row, int64_t block, Workspace* w) const;
  void multiply(const Task& t, int64_t panel, Workspace* w) const;
  void finish(const Task& t, int64_t panel, Workspace* w) const;

  int64_t stride(int64_t block) const { return round_up(b_->channels(block), kSegment); }
  // Between positions.
  int64_t position_stride(int64_t block) const {
    return 2 * spread(task_rows_ * stride(block) / 2);
  }
  int64_t sums_stride() const { return spread(task_rows_ * kPanelColumns); }
  int16_t* mantissas(const Workspace& w, int64_t block, int64_t position, int64_t row) const {
    return w.mantissas.as<int16_t>() + block * positions_ * position_stride(0) +
           position * position_stride(block) + row * stride(block);
  }

  const std::unique_ptr<KernelTransform> transform_;  // null if kernels are reused
  const std::shared_ptr<const TransformedKernels> b_;
  const int64_t blocks_;  // of k
  const PatchReader a_;
  const Axis a_g_;
  const int64_t rows_;
  int64_t task_rows_, row_blocks_, panel_ranges_;
  bool stream_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;
};

AlongM::AlongM(const Part& part, const Operands& operands, const Chains& chains,
               const ContractionKernels& kernels, int threads, OperandReuse& reuse)
    : WinogradJob(part, operands, chains, kernels, threads),
      transform_(reuse.found() ? nullptr
                               : std::make_unique<KernelTransform>(winograd_, operands.b,
                                                                   operands.eb, kernels)),
      b_(transform_ != nullptr ? transform_->result() : reuse.prepared<TransformedKernels>()),
      blocks_(b_->blocks()),
      a_(part.grid_a, operands.a, operands.ea, part.base_a, winograd_.patches_of_a(),
         winograd_.channels().extent),
      a_g_(part.g, &Dim::stride_a, nullptr),
      rows_(results_.points.extent()),
      workspaces_(static_cast<size_t>(threads)) {
  if (transform_ != nullptr) reuse.offer(b_);
  const int64_t share = kMostPositions / positions_;
  const int64_t most_rows = kTaskRows * share;
  // Blocks of rows of nearly equal size, in whole tiles of rows. Each reads all kernels.
  const int64_t tiles = ceil_div(rows_, kTileRows);
  const int64_t wanted =
      std::clamp<int64_t>(p_.G * rows_ / (kFewestRows * share), threads_, 2 * threads_);
  const int64_t blocks =
      std::clamp<int64_t>(ceil_div(wanted, p_.G), ceil_div(rows_, most_rows), tiles);
  task_rows_ = ceil_div(tiles, blocks) * kTileRows;
  row_blocks_ = ceil_div(rows_, task_rows_);
  // Each range of panels transforms the rows again.
  panel_ranges_ = std::clamp<int64_t>(2 * threads_ / (p_.G * row_blocks_), 1, b_->panels());
  bool aligned = reinterpret_cast<uintptr_t>(c_) % 64 == 0 && p_.N % kColumnQuantum == 0;
  for (const auto* dims : {&p_.g, &p_.m})
    for (const Dim& d : *dims) aligned &= d.stride_c % kColumnQuantum == 0;
  stream_ = aligned && p_.G * p_.M * p_.N * int64_t{sizeof(float)} >= kStreamBytes;
}

AlongM::Workspace::Workspace(const AlongM& t)
    : mantissas(Scratch::array<int16_t>({t.blocks_, t.positions_, t.position_stride(0)})),
      norms(static_cast<size_t>(t.blocks_ * t.positions_ * ceil_div(t.task_rows_, kTileRows))),
      units(static_cast<size_t>(t.blocks_ * t.task_rows_)),
      exponents(static_cast<size_t>(t.blocks_ * t.positions_ * t.task_rows_)),
      bases(static_cast<size_t>(t.task_rows_)),
      lost(static_cast<size_t>(t.task_rows_)),
      row_scales(Scratch::array<float>({t.blocks_, t.positions_, t.task_rows_})),
      sums(Scratch::array<float>({t.positions_, t.sums_stride()})) {}

void AlongM::enlist(std::vector<Stage>* stages) {
  if (transform_ != nullptr) {
    (*stages)[kPrepare].push_back({b_->all_panels(), 1, [this](int, int64_t low, int64_t high) {
                                     KernelTransform::Space space;
                                     for (int64_t i = low; i < high; ++i)
                                       transform_->pack(i, &space);
                                   }});
  }
  (*stages)[kCompute].push_back(
      {p_.G * row_blocks_ * panel_ranges_, 1, [this](int worker, int64_t low, int64_t high) {
         auto& w = workspaces_[static_cast<size_t>(worker)];
         if (w == nullptr) w = std::make_unique<Workspace>(*this);
         for (int64_t i = low; i < high; ++i) run_task(task(i), w.get());
#if defined(__x86_64__)
         if (stream_) _mm_sfence();
#endif
       }});
}

AlongM::Task AlongM::task(int64_t i) const {
  const int64_t range = i % panel_ranges_, rows = i / panel_ranges_ % row_blocks_;
  const int64_t row = rows * task_rows_;
  return {i / panel_ranges_ / row_blocks_, row, std::min(task_rows_, rows_ - row),
          b_->panels() * range / panel_ranges_, b_->panels() * (range + 1) / panel_ranges_};
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
  report_lengths(t.g, w->lengths);
}

void AlongM::transform_rows(const Task& t, Workspace* w) const {
  a_.find(a_g_.offset(t.g), t.row, t.rows, &w->space.found);
  w->lost.assign(w->lost.size(), false);
  const int64_t tiles = ceil_div(t.rows, kTileRows);
  std::fill(w->bases.begin(), w->bases.end(), kAbsent);
  for (int64_t block = 0; block < blocks_; ++block) {
    for (int64_t row = 0; row < t.rows; ++row) {
      transform_row(row, block, w);
      int32_t& base = w->bases[static_cast<size_t>(row)];
      base = std::max(base, w->units[static_cast<size_t>(block * task_rows_ + row)]);
    }
    for (int64_t p = 0; p < positions_; ++p)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * kTileRows;
        kernels_.norms_rows(mantissas(*w, block, p, first), stride(block),
                            static_cast<int>(std::min<int64_t>(kTileRows, t.rows - first)),
                            static_cast<int>(stride(block)),
                            &w->norms[static_cast<size_t>(
                                (block * positions_ + p) * (task_rows_ / kTileRows) + tile)]);
      }
  }
  for (int32_t& base : w->bases) base = base == kAbsent ? 0 : base;
  for (int64_t i = 0; i < blocks_ * positions_; ++i)
    scales_below(&w->exponents[static_cast<size_t>(i * task_rows_)], w->bases.data(), t.rows,
                 w->row_scales.as<float>() + i * task_rows_);
}

void AlongM::transform_row(int64_t row, int64_t block, Workspace* w) const {
  const int64_t k = b_->channels(block), padded = round_up(k, kColumnQuantum);
  int16_t* const to = mantissas(*w, block, 0, row);
  const int64_t distance = position_stride(block);
  bool lost = false;
  w->units[static_cast<size_t>(block * task_rows_ + row)] = transform_along(
      a_, row, block * kBlock, k, {tile_, Transform::kInput, kOnes}, kernels_, &w->space, to,
      distance, &w->exponents[static_cast<size_t>(block * positions_ * task_rows_ + row)],
      task_rows_, &lost);
  if (lost) w->lost[static_cast<size_t>(row)] = true;
  if (padded < stride(block))
    for (int64_t p = 0; p < positions_; ++p)
      std::fill(to + p * distance + padded, to + p * distance + stride(block), int16_t{0});
}

// Multiplies the transformed rows by the transformed kernels of a panel.
void AlongM::multiply(const Task& t, int64_t panel, Workspace* w) const {
  const int64_t tiles = ceil_div(t.rows, kTileRows);
  b_->find_bases(t.g, panel, w->column_bases);
  const float* in[kTileRows];
  float* out[kTileRows];
  CellArgs cell{};
  cell.columns = static_cast<int32_t>(b_->width(panel));
  cell.narrow = static_cast<int32_t>(b_->columns(panel));
  cell.a_pair = 1;
  cell.in = in;
  cell.out = out;
  cell.memory = w->memory;
  cell.column_scales = w->column_scales;
  for (int64_t block = 0; block < blocks_; ++block) {
    cell.a_row = stride(block) / 2;
    cell.pairs = static_cast<int32_t>(ceil_div(b_->channels(block), 2));
    for (int64_t p = 0; p < positions_; ++p) {
      const TransformedKernels::Panel b = b_->at(t.g, panel, block, p);
      scales_below(b.exponents, w->column_bases, b_->width(panel), w->column_scales);
      cell.b = b.words;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile * kTileRows;
        cell.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, t.rows - row));
        cell.a = reinterpret_cast<const int32_t*>(mantissas(*w, block, p, row));
        cell.row_scales = w->row_scales.as<float>() + (block * positions_ + p) * task_rows_ + row;
        float* const sums = w->sums.as<float>() + p * sums_stride() + row * kPanelColumns;
        for (int i = 0; i < kTileRows; ++i) {
          out[i] = sums + i * kPanelColumns;
          in[i] = block == 0 ? kZeros : out[i];
        }
        const int64_t at = (block * positions_ + p) * (task_rows_ / kTileRows) + tile;
        run_cell(&cell, w->norms[static_cast<size_t>(at)], *b.norms, b_->channels(block),
                 w->lengths);
      }
    }
  }
}

// Transforms the sums of a panel back and writes the results.
void AlongM::finish(const Task& t, int64_t panel, Workspace* w) const {
  const int64_t n0 = panel * kPanelColumns, count = b_->columns(panel);
  const char* const lost = b_->lost(t.g, panel);
  const bool any_lost = std::any_of(lost, lost + count, [](char x) { return x != 0; });
  static constexpr int32_t kNone[kPanelColumns] = {};
  const size_t elements = results_.elements.size();
  float *to[16], *out[16];
  for (int64_t row = 0; row < t.rows; ++row) {
    const Point& point = w->results[static_cast<size_t>(row)];
    for (size_t i = 0; i < elements; ++i) {
      const Point& element = results_.elements[i];
      to[i] = exists(results_.bounds, point, element.coord)
                  ? c_ + point.offset + element.offset + n0
                  : nullptr;
      out[i] = to[i] != nullptr && count < b_->width(panel) ? w->bounce[i] : to[i];
    }
    const int32_t base = w->bases[static_cast<size_t>(row)];
    const bool normal = all_normal(base, w->column_bases, count);
    kernels_.transform_back({tile_, Transform::kOutput, w->sums.as<float>() + row * kPanelColumns,
                             sums_stride(), static_cast<int>(b_->width(panel)), normal ? base : 0,
                             normal ? w->column_bases : kNone, out, stream_});
    const bool row_lost = w->lost[static_cast<size_t>(row)];
    for (size_t i = 0; i < elements; ++i) {
      if (to[i] == nullptr) continue;
      if (out[i] != to[i]) std::copy_n(out[i], count, to[i]);
      if (!normal) scale(base, w->column_bases, count, to[i]);
      if (row_lost || any_lost) lose(row_lost, lost, count, to[i]);
    }
  }
}

}  // namespace

std::unique_ptr<Job> make_winograd_along_m(const Part& part, const Operands& operands,
                                           const Chains& chains, const ContractionKernels& kernels,
                                           int threads, OperandReuse& reuse) {
  reuse.look_up();
  return std::make_unique<AlongM>(part, operands, chains, kernels, threads, reuse);
}

}  // namespace dfpjax
