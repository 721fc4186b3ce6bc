// Scratch memory that is kept between calls: allocating it afresh would cost a page fault per page
// on every call. All handlers share one cache. It keeps at most kScratchLimit bytes, whatever
// shapes come and go, and frees the least recently used blocks first. A block of more than
// kLargestKept bytes is not kept, since most other blocks would have to go.
#ifndef DFPJAX_RUNTIME_SCRATCH_H_
#define DFPJAX_RUNTIME_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>

namespace dfpjax {

inline constexpr size_t kScratchLimit = size_t{512} << 20;
inline constexpr size_t kLargestKept = kScratchLimit / 2;

// Thrown if there is not enough memory for a block; says how large the block is.
class OutOfScratch : public std::bad_alloc {
 public:
  explicit OutOfScratch(double bytes);
  const char* what() const noexcept override { return message_; }

 private:
  char message_[96];
};

// A 64-byte aligned block, given back to the cache on destruction. Contents are indeterminate.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes);  // throws OutOfScratch
  // Room for a multi-dimensional array of T. Throws OutOfScratch, also if the size overflows.
  template <typename T>
  static Scratch array(std::initializer_list<int64_t> extents) {
    return Scratch(array_bytes(extents, sizeof(T)));
  }
  ~Scratch();
  Scratch(Scratch&& other) noexcept;
  Scratch& operator=(Scratch&& other) noexcept;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return size_; }

 private:
  static int64_t array_bytes(std::initializer_list<int64_t> extents, size_t element);

  void* data_ = nullptr;
  size_t size_ = 0;
};

// Bytes held by the cache, not counting blocks in use.
size_t scratch_bytes();
// Frees the blocks that are not in use.
void release_scratch();

}  // namespace dfpjax

#endif  // DFPJAX_RUNTIME_SCRATCH_H_
