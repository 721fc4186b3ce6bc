// Keeps large blocks of memory in the process when they are freed, for the next one of that size.
//
// A shared library for LD_PRELOAD, with glibc: it stands before malloc and its kin. XLA allocates
// the temporaries of a step as one block of gigabytes, and glibc gives a block of that size back to
// the system as soon as the step is over. In each step its pages are then made and cleared anew; in
// a virtual machine that reports free pages to its host they may have to come from there, which
// takes longer than the step's arithmetic. Blocks of kLeast bytes and more therefore come from one
// region of addresses, as whole huge pages, and stay in memory; those that nothing has wanted for
// half a minute are given back, and so is the oldest where the process would otherwise have more
// than it ever had in use at once. All else is glibc's.
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

// glibc's own functions, by the names that are not preloaded.
extern "C" {
void* __libc_malloc(size_t);
void __libc_free(void*);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLeast = size_t{32} << 20;  // glibc keeps smaller ones itself
constexpr int kMostBlocks = 4096;
constexpr int64_t kIdle = 30'000'000'000;  // nanoseconds
constexpr int kMoments = 40;               // to wait for a block, each of
constexpr long kNanoseconds = 250'000;

// A stretch of the region, in pages. Blocks cover the region in the order of addresses; the last
// one is what no block has been made of yet.
struct Block {
  size_t first, count;
  bool used;
  int64_t freed_at;  // in nanoseconds, of a free one that has memory; else kNever
};
constexpr int64_t kNever = -1;

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
Block blocks[kMostBlocks];
int block_count = 0;
char* region = nullptr;
size_t region_bytes = 0;
size_t most_used = 0;  // pages, at once

struct Locked {
  Locked() { pthread_mutex_lock(&mutex); }
  ~Locked() { pthread_mutex_unlock(&mutex); }
};

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

bool is_ours(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - region) < region_bytes;
}

size_t (*usable_in_glibc)(void*) = nullptr;
int (*trim_glibc)(size_t) = nullptr;

// Before main: the addresses are reserved, and take no memory until they are used.
__attribute__((constructor)) void reserve() {
  usable_in_glibc =
      reinterpret_cast<decltype(usable_in_glibc)>(dlsym(RTLD_NEXT, "malloc_usable_size"));
  trim_glibc = reinterpret_cast<decltype(trim_glibc)>(dlsym(RTLD_NEXT, "malloc_trim"));
  const size_t memory =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = memory / kPage * kPage * 4;
  void* const all = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return;  // all is glibc's
  char* const first = static_cast<char*>(all) + (kPage - reinterpret_cast<size_t>(all) % kPage);
  madvise(first, bytes, MADV_HUGEPAGE);
  blocks[0] = {0, bytes / kPage, false, kNever};
  block_count = 1;
  region = first;
  region_bytes = bytes;
  // A child of a process with threads must not find the lock taken.
  pthread_atfork([] { pthread_mutex_lock(&mutex); }, [] { pthread_mutex_unlock(&mutex); },
                 [] { pthread_mutex_unlock(&mutex); });
}

// The smallest free block of at least `count` and at most `most` pages, the last one left out.
Block* find(size_t count, size_t most) {
  Block* best = nullptr;
  for (Block* block = blocks; block < blocks + block_count - 1; ++block)
    if (!block->used && block->count >= count && block->count <= most &&
        (best == nullptr || block->count < best->count))
      best = block;
  return best;
}

// Makes one of free neighbours among the first `count` blocks.
void merge(int count) {
  Block* last = blocks;
  for (Block* block = blocks + 1; block < blocks + block_count; ++block) {
    if (last->used || block->used || block >= blocks + count) {
      *++last = *block;
    } else {
      last->count += block->count;
      last->freed_at = std::max(last->freed_at, block->freed_at);
    }
  }
  block_count = static_cast<int>(last + 1 - blocks);
}

bool has_twin(size_t count) {
  return std::any_of(blocks, blocks + block_count,
                     [&](const Block& b) { return b.used && b.count == count; });
}

// Gives the memory of a free block back to the system.
void release(Block* block) {
  madvise(region + block->first * kPage, block->count * kPage, MADV_DONTNEED);
  block->freed_at = kNever;
}

// That of all that have been free for so long.
void release_idle(int64_t nanoseconds) {
  const int64_t time = now();
  for (Block* block = blocks; block < blocks + block_count; ++block)
    if (block->freed_at != kNever && time - block->freed_at >= nanoseconds) release(block);
}

// Before a block gets new memory: what the process has must not become more than it had in use at
// once, or now has with this block. What was freed first goes first.
void make_room(size_t count) {
  size_t used = count, kept = 0;
  for (const Block* block = blocks; block < blocks + block_count; ++block) {
    if (block->used) used += block->count;
    if (block->freed_at != kNever) kept += block->count;
  }
  most_used = std::max(most_used, used);
  while (used + kept > most_used) {
    Block* oldest = nullptr;
    for (Block* block = blocks; block < blocks + block_count; ++block)
      if (block->freed_at != kNever && (oldest == nullptr || block->freed_at < oldest->freed_at))
        oldest = block;
    kept -= oldest->count;
    release(oldest);
  }
}

void* take(size_t bytes) {
  const size_t count = (bytes + kPage - 1) / kPage;
  const size_t similar = count + count / 8;
  Locked locked;
  // What steps take they take again, and the block that left a hole fits into it: holes stay as
  // they are while there is one of the size.
  Block* block = find(count, similar);
  // The last step's block is often about to be freed, by another thread: better to wait a moment
  // than to hold two of them.
  for (int i = 0; i < kMoments && block == nullptr && has_twin(count); ++i) {
    pthread_mutex_unlock(&mutex);
    const timespec moment{0, kNanoseconds};
    nanosleep(&moment, nullptr);
    pthread_mutex_lock(&mutex);
    block = find(count, similar);
  }
  if (block == nullptr) {
    merge(block_count - 1);
    // Something small would make a large hole useless for what left it.
    block = find(count, 2 * count);
    if (block == nullptr) block = blocks + block_count - 1;
    if (block->used || block->count < count || block_count == kMostBlocks) {
      // No room for more: whatever is free.
      merge(block_count);
      block = find(count, region_bytes);
      if (block == nullptr) block = blocks + block_count - 1;
      if (block->used || block->count < count || block_count == kMostBlocks) return nullptr;
    }
    if (block->count > count) {  // the rest is a block of its own
      std::copy_backward(block, blocks + block_count, blocks + block_count + 1);
      ++block_count;
      block[1].first += count;
      block[1].count -= count;
      block->count = count;
    }
  }
  if (block->freed_at == kNever) make_room(count);
  block->used = true;
  block->freed_at = kNever;
  return region + block->first * kPage;
}

Block* find_used(const void* p) {
  const size_t first = static_cast<size_t>(static_cast<const char*>(p) - region) / kPage;
  Block* const end = blocks + block_count;
  Block* const block =
      std::upper_bound(blocks, end, first,
                       [](size_t value, const Block& b) { return value < b.first; }) -
      1;
  if (!block->used) __builtin_trap();  // freed twice
  return block;
}

void give(void* p) {
  Locked locked;
  Block* const block = find_used(p);
  block->used = false;
  block->freed_at = now();
  release_idle(kIdle);
}

size_t usable(const void* p) {
  Locked locked;
  return find_used(p)->count * kPage;
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

EXPORT void* malloc(size_t size) {
  if (size >= kLeast && size <= region_bytes)
    if (void* p = take(size)) return p;
  return __libc_malloc(size);
}

EXPORT void free(void* p) {
  if (is_ours(p)) {
    const int error = errno;  // which free leaves alone
    give(p);
    errno = error;
  } else {
    __libc_free(p);
  }
}

EXPORT void* memalign(size_t alignment, size_t size) {
  if (size >= kLeast && size <= region_bytes && alignment <= kPage)
    if (void* p = take(size)) return p;
  return __libc_memalign(alignment, size);
}

EXPORT void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

EXPORT int posix_memalign(void** p, size_t alignment, size_t size) {
  if (alignment % sizeof(void*) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0)
    return EINVAL;
  const int error = errno;
  void* const memory = memalign(alignment, size);
  errno = error;
  if (memory == nullptr) return ENOMEM;
  *p = memory;
  return 0;
}

EXPORT void* realloc(void* p, size_t size) {
  if (p == nullptr) return malloc(size);
  if (!is_ours(p)) return __libc_realloc(p, size);
  if (size == 0) {
    free(p);
    return nullptr;
  }
  const size_t had = usable(p);
  if (size <= had && size >= kLeast && size > had / 2) return p;
  void* const moved = malloc(size);
  if (moved == nullptr) return nullptr;
  memcpy(moved, p, std::min(size, had));
  free(p);
  return moved;
}

EXPORT void* reallocarray(void* p, size_t count, size_t size) {
  size_t bytes;
  if (!__builtin_mul_overflow(count, size, &bytes)) return realloc(p, bytes);
  errno = ENOMEM;
  return nullptr;
}

EXPORT size_t malloc_usable_size(void* p) {
  return is_ours(p) ? usable(p) : usable_in_glibc ? usable_in_glibc(p) : 0;
}

// Also gives all free blocks back, and forgets how much was ever in use.
EXPORT int malloc_trim(size_t pad) {
  {
    Locked locked;
    release_idle(0);
    most_used = 0;
  }
  return trim_glibc ? trim_glibc(pad) : 0;
}

}  // extern "C"
