// What calls prepare of B, packed or transformed, and a call site keeps for its next calls while B
// stays the same, as it does in inference.
//
// In training B changes with each step, and keeping must cost nothing. So a call first takes a
// fingerprint of B. The last of kCallsUntilKept calls in a row with one fingerprint keeps what it
// prepares, with a copy of B. The next one with this fingerprint computes with what is kept, and
// meanwhile compares B with the copy, byte for byte. If they differ, it drops what is kept and runs
// again. If fewer than kCallsUntilKept calls had used that by then, it takes twice as many calls
// with one fingerprint from now on until something is kept: it costs little if B goes on to change
// where the fingerprint does not show it.
#ifndef DFPJAX_CONTRACTION_KEPT_OPERAND_H_
#define DFPJAX_CONTRACTION_KEPT_OPERAND_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace dfpjax {

// Of all call sites together. Nothing is kept beyond it.
inline constexpr size_t kKeptLimit = size_t{512} << 20;

// The first steps of a warm-up change weights by less than their mantissas show, if at all. Their
// memory would be taken for nothing.
inline constexpr int64_t kCallsUntilKept = 8;

// A share of the limit, given back on destruction.
class KeptShare {
 public:
  explicit KeptShare(size_t bytes);
  ~KeptShare();
  KeptShare(const KeptShare&) = delete;
  KeptShare& operator=(const KeptShare&) = delete;
  bool granted() const { return bytes_ > 0; }

 private:
  size_t bytes_;  // 0 if it was not granted
};

// Bytes of all that is kept: of prepared operands, and of the copies of B they were made of.
size_t kept_operand_bytes();
// Drops what all call sites keep.
void release_kept_operands();

// B in the form in which tasks read it.
class PreparedOperand {
 public:
  virtual ~PreparedOperand() = default;
  virtual size_t bytes() const = 0;
};

// What one call site keeps. Its calls have the same plan, and may run at the same time.
class KeptOperand {
 public:
  KeptOperand();
  ~KeptOperand();
  KeptOperand(const KeptOperand&) = delete;
  KeptOperand& operator=(const KeptOperand&) = delete;
  void release();

 private:
  friend class OperandReuse;
  struct Kept {
    explicit Kept(size_t bytes) : share(bytes) {}
    KeptShare share;
    Scratch mantissas, exponents;  // copies of B's
    std::shared_ptr<const PreparedOperand> prepared;
    mutable std::atomic<int64_t> uses{0};  // by calls whose B was the same
  };

  std::mutex mutex_;
  std::optional<uint64_t> last_;          // the fingerprint of the last call
  int64_t equal_ = 0;                     // calls in a row before the last one that had it, too
  int64_t enough_ = kCallsUntilKept - 1;  // of these, to keep what the last one prepares
  std::shared_ptr<const Kept> kept_;
};

// One call's use of what its site keeps.
class OperandReuse {
 public:
  OperandReuse() = default;  // without a site nothing is kept
  // B of the call, and the numbers of its mantissas and exponents. `site` may be null.
  OperandReuse(KeptOperand* site, const int16_t* b, int64_t size, const int32_t* exponents,
               int64_t exponents_size);

  // Without this, nothing is found and nothing is kept.
  void look_up();
  // Whether the call computes with what is kept.
  bool found() const { return found_ != nullptr; }
  // What was found, or null. T is what the calls of this site offer.
  template <class T>
  std::shared_ptr<const T> prepared() const {
    return found() ? std::static_pointer_cast<const T>(found_->prepared) : nullptr;
  }
  // Whether B seems to be that of the calls before, so that an offer is worth while.
  bool again() const { return again_; }
  // Offers what the call prepares. Returns whether it will be kept.
  bool offer(std::shared_ptr<const PreparedOperand> prepared);
  // Adds to a stage what the call does meanwhile: it compares B with the copy, or makes the copy.
  void enlist(Stage* stage);
  // Call this after the stages: keeps what was offered. Returns false if B is another one than that
  // which was found. Then the call must run again, and finds nothing.
  bool finish();

 private:
  struct Bytes {
    const char* data = nullptr;
    size_t size = 0;
  };

  static uint64_t fingerprint(const Bytes& bytes, uint64_t hash);

  KeptOperand* const site_ = nullptr;
  const Bytes mantissas_{}, exponents_{};
  uint64_t fingerprint_ = 0;
  bool again_ = false;  // enough calls before had the same fingerprint
  std::shared_ptr<const KeptOperand::Kept> found_;
  std::atomic<bool> differs_{false};  // from what was found
  std::shared_ptr<KeptOperand::Kept> offered_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_KEPT_OPERAND_H_
