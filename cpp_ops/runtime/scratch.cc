#include "runtime/scratch.h"

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <list>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dfpjax {
namespace {

constexpr size_t kMaxBlocks = 256;  // few enough to search quickly
constexpr size_t kHugePage = size_t{2} << 20;

struct Block {
  size_t size;
  void* data;
};

struct Cache {
  std::mutex mutex;
  std::list<Block> blocks;  // the most recently returned one comes first
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

OutOfScratch::OutOfScratch(double bytes) {
  std::snprintf(message_, sizeof message_,
                "out of memory: cannot allocate %.4g MiB of scratch space", bytes / (1 << 20));
}

int64_t Scratch::array_bytes(std::initializer_list<int64_t> extents, size_t element) {
  double size = static_cast<double>(element);
  for (int64_t extent : extents) size *= static_cast<double>(extent);
  // This limit is far below sizes that overflow when they are rounded up to a page.
  if (size > static_cast<double>(std::numeric_limits<int64_t>::max() / 2)) throw OutOfScratch(size);
  auto bytes = static_cast<int64_t>(element);
  for (int64_t extent : extents) bytes *= extent;
  return bytes;
}

Scratch::Scratch(int64_t bytes) {
  if (bytes <= 0) return;
  size_ = round_up(static_cast<size_t>(bytes), 4096);
  if (size_ >= kHugePage) size_ = round_up(size_, kHugePage);
  {
    Cache& c = cache();
    std::lock_guard<std::mutex> lock(c.mutex);
    // A block of up to twice the size will do. A larger one would waste memory that another call
    // needs.
    auto best = c.blocks.end();
    for (auto it = c.blocks.begin(); it != c.blocks.end(); ++it)
      if (it->size >= size_ && it->size <= 2 * size_ &&
          (best == c.blocks.end() || it->size < best->size))
        best = it;
    if (best != c.blocks.end()) {
      size_ = best->size;
      data_ = best->data;
      c.bytes -= size_;
      c.blocks.erase(best);
      return;
    }
  }
  data_ = allocate(size_);
  if (data_ == nullptr) {
    release_scratch();
    data_ = allocate(size_);
  }
  if (data_ == nullptr) throw OutOfScratch(static_cast<double>(size_));
}

Scratch::~Scratch() {
  if (data_ == nullptr) return;
  if (size_ > kLargestKept) {
    std::free(data_);
    return;
  }
  Cache& c = cache();
  std::list<Block> dropped, kept;
  try {
    kept.push_back({size_, data_});
  } catch (const std::bad_alloc&) {
    std::free(data_);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(c.mutex);
    c.blocks.splice(c.blocks.begin(), kept);
    c.bytes += size_;
    // The least recently used blocks go first.
    while (c.bytes > kScratchLimit || c.blocks.size() > kMaxBlocks) {
      c.bytes -= c.blocks.back().size;
      dropped.splice(dropped.begin(), c.blocks, std::prev(c.blocks.end()));
    }
  }
  for (const Block& block : dropped) std::free(block.data);
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
  for (const Block& block : c.blocks) std::free(block.data);
  c.blocks.clear();
  c.bytes = 0;
}

}  // namespace dfpjax
