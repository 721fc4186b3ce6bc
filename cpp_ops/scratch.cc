#include "scratch.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dfpjax {
namespace {

constexpr size_t kCacheLimit = size_t{1} << 30;
constexpr size_t kHugePage = size_t{2} << 20;

struct Cache {
  std::mutex mutex;
  std::multimap<size_t, void*> blocks;  // by size
  size_t bytes = 0;
};

// Never destroyed: worker threads may outlive the module's static objects.
Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

void* allocate(size_t size) {
  const bool huge = size >= kHugePage;
  void* data = std::aligned_alloc(huge ? kHugePage : 64, size);
#if defined(__linux__)
  if (huge && data != nullptr) madvise(data, size, MADV_HUGEPAGE);
#endif
  return data;
}

size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

}  // namespace

Scratch::Scratch(int64_t bytes) {
  if (bytes <= 0) return;
  size_ = round_up(static_cast<size_t>(bytes), 4096);
  if (size_ >= kHugePage) size_ = round_up(size_, kHugePage);
  {
    Cache& c = cache();
    std::lock_guard<std::mutex> lock(c.mutex);
    // A block up to twice too large will do; more would waste what another call needs.
    auto it = c.blocks.lower_bound(size_);
    if (it != c.blocks.end() && it->first <= 2 * size_) {
      size_ = it->first;
      data_ = it->second;
      c.bytes -= size_;
      c.blocks.erase(it);
      return;
    }
  }
  data_ = allocate(size_);
  if (data_ == nullptr) {
    release_scratch();
    data_ = allocate(size_);
  }
  if (data_ == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() {
  if (data_ == nullptr) return;
  Cache& c = cache();
  {
    std::lock_guard<std::mutex> lock(c.mutex);
    if (c.bytes + size_ <= kCacheLimit) {
      c.blocks.emplace(size_, data_);
      c.bytes += size_;
      return;
    }
  }
  std::free(data_);
}

Scratch::Scratch(Scratch&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Scratch& Scratch::operator=(Scratch&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

size_t scratch_bytes() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  return c.bytes;
}

void release_scratch() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  for (auto& block : c.blocks) std::free(block.second);
  c.blocks.clear();
  c.bytes = 0;
}

}  // namespace dfpjax
