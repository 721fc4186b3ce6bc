// Transformed kernels that a call site keeps for its next calls while B stays the same, as it does
// in inference.
//
// A call whose B equals the kept one, byte for byte, uses them; comparing costs reading both once.
// In training B changes with each step, and keeping must cost nothing. So a call first takes a
// fingerprint of B. Kernels are kept by a call that has the fingerprint of the call before it, and
// dropped by the first one whose B differs.
#ifndef DFPJAX_CONTRACTION_KEPT_KERNELS_H_
#define DFPJAX_CONTRACTION_KEPT_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "contraction/transformed_kernels.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace dfpjax {

// Of all call sites together. Nothing is kept beyond it.
inline constexpr size_t kKeptLimit = size_t{512} << 20;

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

// Bytes of all kernels that are kept, and of the copies of B they were made of.
size_t kept_kernel_bytes();
// Drops the kernels of all call sites.
void release_kept_kernels();

// What one call site keeps. Its calls have the same plan, and may run at the same time.
class KeptKernels {
 public:
  KeptKernels();
  ~KeptKernels();
  KeptKernels(const KeptKernels&) = delete;
  KeptKernels& operator=(const KeptKernels&) = delete;
  void release();

 private:
  friend class KernelReuse;
  struct Kept {
    explicit Kept(size_t bytes) : share(bytes) {}
    KeptShare share;
    Scratch mantissas, exponents;  // copies of B's
    std::shared_ptr<const TransformedKernels> kernels;
  };

  std::mutex mutex_;
  std::optional<uint64_t> last_;  // the fingerprint of the last call
  std::shared_ptr<const Kept> kept_;
};

// One call's use of what its site keeps.
class KernelReuse {
 public:
  KernelReuse() = default;  // without a site nothing is kept
  // B of the call, and the numbers of its mantissas and exponents. `site` may be null.
  KernelReuse(KeptKernels* site, const int16_t* b, int64_t size, const int32_t* exponents,
              int64_t exponents_size);

  void look_up(Executor& executor);
  // The kernels that are kept, or null.
  const std::shared_ptr<const TransformedKernels>& found() const { return found_; }
  // Offers the kernels that the call makes in this stage. If they are to be kept, the stage copies
  // B, too.
  void offer(std::shared_ptr<const TransformedKernels> kernels, Stage* stage);
  // Keeps them; call this after the stage.
  void finish();

 private:
  struct Bytes {
    const char* data = nullptr;
    size_t size = 0;
  };

  static uint64_t fingerprint(const Bytes& bytes, uint64_t hash);
  bool equals(const KeptKernels::Kept& kept, Executor& executor) const;

  KeptKernels* const site_ = nullptr;
  const Bytes mantissas_{}, exponents_{};
  uint64_t fingerprint_ = 0;
  bool again_ = false;  // the call before had the same fingerprint
  std::shared_ptr<const TransformedKernels> found_;
  std::shared_ptr<KeptKernels::Kept> offered_;
};

}  // namespace dfpjax

#endif  // DFPJAX_CONTRACTION_KEPT_KERNELS_H_
