// The kernels of Winograd parts whose tiles lie along M.
#ifndef DFPJAX_CONTRACTION_TRANSFORMED_KERNELS_H_
#define DFPJAX_CONTRACTION_TRANSFORMED_KERNELS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "contraction/kept_operand.h"
#include "contraction/packing.h"
#include "contraction/winograd.h"
#include "runtime/scratch.h"

namespace dfpjax {

// The words of all panels, with what belongs to them.
class TransformedKernels : public PreparedOperand {
 public:
  explicit TransformedKernels(const WinogradPart& part);

  int64_t all_panels() const { return groups_ * panels_; }
  int64_t blocks() const { return blocks_; }
  int64_t panels() const { return panels_; }
  int64_t channels(int64_t block) const { return std::min<int64_t>(kBlock, k_ - block * kBlock); }
  int64_t columns(int64_t panel) const {
    return std::min<int64_t>(kPanelColumns, n_ - panel * kPanelColumns);
  }
  int64_t width(int64_t panel) const { return round_up(columns(panel), kColumnQuantum); }
  size_t bytes() const override;

  // A panel and block of k at one position.
  struct Panel {
    const int32_t* words;
    const Norms* norms;
    const int32_t* exponents;  // of the columns
  };
  Panel at(int64_t g, int64_t panel, int64_t block, int64_t position) const {
    const int64_t i = index(g, panel, block) + position;
    return {words_.as<int32_t>() + i * block_words_, &norms_[static_cast<size_t>(i)],
            exponents_.as<int32_t>() + i * kPanelColumns};
  }
  // The bases of the columns of a panel.
  void find_bases(int64_t g, int64_t panel, int32_t* bases) const;
  // For each column of a panel, whether it has an element that is not finite.
  const char* lost(int64_t g, int64_t panel) const {
    return &lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns)];
  }

 private:
  friend class KernelTransform;

  // Index of [g][panel][block][position].
  int64_t index(int64_t g, int64_t panel, int64_t block) const {
    return ((g * panels_ + panel) * blocks_ + block) * positions_;
  }
  int32_t* words_at(int64_t g, int64_t panel, int64_t block) const {
    return words_.as<int32_t>() + index(g, panel, block) * block_words_;
  }
  int32_t* exponents_at(int64_t g, int64_t panel, int64_t block) const {
    return exponents_.as<int32_t>() + index(g, panel, block) * kPanelColumns;
  }
  int32_t* units(int64_t g, int64_t panel, int64_t block) const {
    return units_.as<int32_t>() + index(g, panel, block) / positions_ * kPanelColumns;
  }
  void lose(int64_t g, int64_t panel, int64_t column, int64_t count) {
    std::fill_n(&lost_[static_cast<size_t>((g * panels_ + panel) * kPanelColumns + column)], count,
                char{1});
  }

  const int64_t positions_, groups_, k_, n_, blocks_, panels_, block_words_;
  Scratch words_, exponents_;  // [g][panel][block][position]
  Scratch units_;              // [g][panel][block][column]
  std::vector<Norms> norms_;
  std::vector<char> lost_;  // [g][panel][column]
};

// Transforms the kernels of one call.
class KernelTransform {
 public:
  KernelTransform(const WinogradPart& part, const int16_t* data, const int32_t* exponents,
                  const ContractionKernels& kernels);

  struct Space : PatchSpace {
    std::vector<int16_t> rows;
  };
  // Complete when all panels are.
  std::shared_ptr<const TransformedKernels> result() const { return result_; }
  // Transforms the kernels of a panel; the index is over [g][panel].
  void pack(int64_t index, Space* space);

 private:
  void pack_across(int64_t g, int64_t panel, int64_t block, Space* space);
  void pack_along(int64_t g, int64_t panel, int64_t block, Space* space);

  const std::shared_ptr<TransformedKernels> result_;
  TransformedKernels& to_;
  const ContractionKernels& kernels_;
  const WinogradTile tile_;
  const bool along_k_;  // contiguous along the channels, else along the columns
  const PatchReader reader_;
  const Axis g_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_TRANSFORMED_KERNELS_H_
