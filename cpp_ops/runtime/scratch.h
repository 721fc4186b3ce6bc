// Scratch memory that is kept between calls: allocating it afresh would pay a page fault per page
// on every call. The cache is shared by all handlers and keeps at most kScratchLimit bytes,
// whatever shapes come and go; what was not wanted for longest is freed first.
#ifndef DFPJAX_RUNTIME_SCRATCH_H_
#define DFPJAX_RUNTIME_SCRATCH_H_

#include <cstddef>
#include <cstdint>

namespace dfpjax {

inline constexpr size_t kScratchLimit = size_t{512} << 20;

// A 64-byte aligned block, given back to the cache on destruction. Contents are indeterminate.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes);  // throws std::bad_alloc
  ~Scratch();
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Bytes held by the cache, not counting blocks in use.
size_t scratch_bytes();
// Frees the blocks that are not in use.
void release_scratch();

}  // namespace dfpjax

#endif  // DFPJAX_RUNTIME_SCRATCH_H_
