// Keeps large freed blocks of memory in the process, for the next allocation of the same size.
//
// This is a shared library for LD_PRELOAD, for glibc: it overrides malloc and its relatives. XLA
// allocates the temporaries of a step as one block of gigabytes, and glibc returns a block of that
// size to the system as soon as the step is over. So in each step the system has to provide and
// clear the pages again. A virtual machine that reports free pages to its host may have to get them
// back from the host, which takes longer than the arithmetic of the step. Therefore blocks of
// kLeast bytes and more come from one region of addresses, as whole huge pages, and stay in memory
// when they are freed.
//
// The system may take the pages of a free block when it runs short of memory (MADV_FREE). A block
// that has been free for half a minute is returned to the system. So is the oldest free block if
// the process would otherwise have more memory than it ever had in use at once. glibc handles
// everything else.
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
#include <atomic>

// glibc's own functions, under names that this library does not override.
extern "C" {
void* __libc_malloc(size_t);
void __libc_free(void*);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

// The headers may be older than the system. A system that is older than these flags refuses
// MADV_FREE, and treats the address with MAP_FIXED_NOREPLACE as a hint.
#ifndef MADV_FREE
#define MADV_FREE 8
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLeast = size_t{32} << 20;  // glibc keeps smaller ones itself
constexpr int kMostBlocks = 4096;
// In nanoseconds.
constexpr int64_t kIdle = 30'000'000'000;
constexpr int64_t kPatience = 20'000'000;
constexpr int64_t kPatienceForPage = 400'000;  // the system takes longer to provide and clear one
constexpr long kMoment = 50'000;
constexpr int64_t kNever = -1;
// Smaller requests do not check for idle blocks.
constexpr size_t kNoticeable = 1024;

enum class State : char {
  kFree,
  kUsed,
  kLost,  // its addresses may have another owner now
};

// A stretch of the region, in pages. Blocks cover the region in the order of addresses; the last
// one is not divided into blocks yet. Blocks lie in the mapping of the region, except for used
// blocks that realloc has moved: each of these has its own mapping.
struct Block {
  size_t first, count;
  State state;
  bool moved;
  bool awaited;        // a thread waited in vain for it since it was taken
  pthread_t taken_by;  // if used
  int64_t freed_at;    // if free and with memory; else kNever

  char* begin() const;
  size_t bytes() const { return count * kPage; }
};

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
Block blocks[kMostBlocks];
int block_count = 0;
char* region = nullptr;
size_t region_bytes = 0;
size_t most_used = 0;  // the most pages in use at once
bool can_move = true;
// No block becomes idle before this time; kNever if no free block has memory.
std::atomic<int64_t> look_at{kNever};

char* Block::begin() const { return region + first * kPage; }

struct Locked {
  Locked() { pthread_mutex_lock(&mutex); }
  ~Locked() { pthread_mutex_unlock(&mutex); }
};

int64_t now(clockid_t clock = CLOCK_MONOTONIC) {
  timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage; }

bool is_in_region(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - region) < region_bytes;
}

size_t (*usable_in_glibc)(void*) = nullptr;
int (*trim_glibc)(size_t) = nullptr;

void* map(void* address, size_t bytes, int flags) {
  return mmap(address, bytes, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

// Runs before main. Reserves the addresses, which take no memory until they are used.
__attribute__((constructor)) void reserve() {
  usable_in_glibc =
      reinterpret_cast<decltype(usable_in_glibc)>(dlsym(RTLD_NEXT, "malloc_usable_size"));
  trim_glibc = reinterpret_cast<decltype(trim_glibc)>(dlsym(RTLD_NEXT, "malloc_trim"));
  const size_t memory =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = memory / kPage * kPage * 4;
  void* const all = map(nullptr, bytes + kPage, 0);
  if (all == MAP_FAILED) return;  // glibc handles everything
  char* const first = static_cast<char*>(all) + (kPage - reinterpret_cast<size_t>(all) % kPage);
  madvise(first, bytes, MADV_HUGEPAGE);
  blocks[0] = {0, bytes / kPage, State::kFree, false, false, {}, kNever};
  block_count = 1;
  region = first;
  region_bytes = bytes;
  // A forked child must not find the lock held by a thread that it does not have.
  pthread_atfork([] { pthread_mutex_lock(&mutex); }, [] { pthread_mutex_unlock(&mutex); },
                 [] { pthread_mutex_unlock(&mutex); });
}

// The smallest free block of at least `count` and at most `most` pages, except the last block.
Block* find(size_t count, size_t most) {
  Block* best = nullptr;
  for (Block* block = blocks; block < blocks + block_count - 1; ++block)
    if (block->state == State::kFree && block->count >= count && block->count <= most &&
        (best == nullptr || block->count < best->count))
      best = block;
  return best;
}

// Merges free neighbours among the first `count` blocks.
void merge(int count) {
  Block* last = blocks;
  for (Block* block = blocks + 1; block < blocks + block_count; ++block) {
    if (last->state != State::kFree || block->state != State::kFree || block >= blocks + count) {
      *++last = *block;
    } else {
      last->count += block->count;
      last->freed_at = std::max(last->freed_at, block->freed_at);
    }
  }
  block_count = static_cast<int>(last + 1 - blocks);
}

// Splits a block after its first `count` pages.
void split(Block* block, size_t count) {
  if (block->count == count) return;
  std::copy_backward(block, blocks + block_count, blocks + block_count + 1);
  ++block_count;
  block[1].first += count;
  block[1].count -= count;
  block->count = count;
}

// Returns the memory of a free block to the system.
void release(Block* block) {
  madvise(block->begin(), block->bytes(), MADV_DONTNEED);
  block->freed_at = kNever;
}

// Releases all blocks that have been free for at least `nanoseconds`.
void release_idle(int64_t nanoseconds) {
  const int64_t time = now();
  int64_t oldest = kNever;
  for (Block* block = blocks; block < blocks + block_count; ++block) {
    if (block->freed_at == kNever) continue;
    if (time - block->freed_at >= nanoseconds) {
      release(block);
    } else if (oldest == kNever || block->freed_at < oldest) {
      oldest = block->freed_at;
    }
  }
  look_at.store(oldest == kNever ? kNever : oldest + kIdle, std::memory_order_relaxed);
}

// Releases idle blocks. No thread waits for the time to do so: the next request of kNoticeable
// bytes or more does it. Until then the system can take the pages.
void look_after_idle() {
  const int64_t time = look_at.load(std::memory_order_relaxed);
  if (time == kNever || now(CLOCK_MONOTONIC_COARSE) < time) return;
  Locked locked;
  release_idle(kIdle);
}

// Call this before the process gets `count` new pages. It counts them as used and releases free
// blocks, the oldest first, until used and kept pages together are no more than were ever used at
// once.
void make_room(size_t count) {
  size_t used = count, kept = 0;
  for (const Block* block = blocks; block < blocks + block_count; ++block) {
    if (block->state == State::kUsed) used += block->count;
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

// A free block of about `count` pages. Each step repeats the allocations of the last one, and a
// block fits into the hole that it left. So holes of a similar size are taken as they are, not
// merged.
Block* find_similar(size_t count) { return find(count, count + count / 8); }

// Whether a block of this size may be freed soon. Blocks of the calling thread do not count, since
// it cannot free them while it waits.
bool is_worth_waiting(size_t count) {
  const pthread_t self = pthread_self();
  return std::any_of(blocks, blocks + block_count, [&](const Block& b) {
    return b.state == State::kUsed && b.count == count && !b.awaited &&
           !pthread_equal(b.taken_by, self);
  });
}

// Another thread is often about to free the last step's block. Waiting for it for a moment is
// better than holding two blocks. Returns null if the wait was in vain; no thread then waits for
// the same blocks again.
Block* wait_for_similar(size_t count) {
  Block* block = nullptr;
  const int64_t end = now() + kPatience + kPatienceForPage * static_cast<int64_t>(count);
  while (block == nullptr && is_worth_waiting(count) && now() < end) {
    pthread_mutex_unlock(&mutex);
    const timespec moment{0, kMoment};
    nanosleep(&moment, nullptr);
    pthread_mutex_lock(&mutex);
    block = find_similar(count);
  }
  if (block == nullptr)
    for (Block* b = blocks; b < blocks + block_count; ++b) b->awaited |= b->count == count;
  return block;
}

// A new free block of `count` pages; null if there is no room.
Block* make_block(size_t count) {
  merge(block_count - 1);
  // A small block would make a large hole useless for the block that left it.
  Block* block = find(count, 2 * count);
  Block* const last = blocks + block_count - 1;
  const auto fits = [&] {
    return block->state == State::kFree && block->count >= count && block_count < kMostBlocks;
  };
  if (block == nullptr) block = last;
  if (!fits()) {
    // There is no room for another block, so any free one has to do.
    merge(block_count);
    block = find(count, region_bytes);
    if (block == nullptr) block = blocks + block_count - 1;
    if (!fits()) return nullptr;
  }
  split(block, count);
  return block;
}

void* take(size_t bytes) {
  const size_t count = pages(bytes);
  Locked locked;
  Block* block = find_similar(count);
  const bool waits = block == nullptr && is_worth_waiting(count);
  if (waits) block = wait_for_similar(count);
  const bool in_vain = waits && block == nullptr;
  if (block == nullptr) block = make_block(count);
  if (block == nullptr) return nullptr;
  if (block->freed_at == kNever) make_room(count);
  block->state = State::kUsed;
  block->awaited = in_vain;
  block->taken_by = pthread_self();
  block->freed_at = kNever;
  return block->begin();
}

// The used block at an address of the region; null if the address is no longer ours.
Block* find_used(const void* p) {
  const size_t first = static_cast<size_t>(static_cast<const char*>(p) - region) / kPage;
  Block* const end = blocks + block_count;
  Block* const block =
      std::upper_bound(blocks, end, first,
                       [](size_t value, const Block& b) { return value < b.first; }) -
      1;
  if (block->state == State::kFree) __builtin_trap();  // freed twice
  return block->state == State::kUsed ? block : nullptr;
}

// Makes the addresses of a block part of the mapping of the region again, without memory.
void restore(Block* block, int flags) {
  void* const got = map(block->begin(), block->bytes(), flags);
  block->moved = false;
  block->freed_at = kNever;
  if (got == block->begin()) {
    madvise(got, block->bytes(), MADV_HUGEPAGE);
    block->state = State::kFree;
  } else {
    if (got != MAP_FAILED) munmap(got, block->bytes());
    block->state = State::kLost;
  }
}

// Marks a block as free. The system already knows that it may take the pages.
void set_free(Block* block) {
  if (block->moved) return restore(block, MAP_FIXED);
  block->state = State::kFree;
  block->freed_at = now();
  release_idle(kIdle);
}

// The size of the block at an address, in bytes; 0 if the address is not ours.
size_t usable(const void* p) {
  if (!is_in_region(p)) return 0;
  Locked locked;
  const Block* const block = find_used(p);
  return block == nullptr ? 0 : block->bytes();
}

void give(void* p, size_t bytes) {
  // This comes first, while no other thread can take the block and write to it. A system without
  // MADV_FREE just keeps the pages.
  madvise(p, bytes, MADV_FREE);
  Locked locked;
  set_free(find_used(p));
}

// Moves the pages of a block to a block of `count` pages. Returns null if it cannot.
void* move(void* p, size_t count) {
  Block* const to = make_block(count);
  if (to == nullptr) return nullptr;
  Block* const from = find_used(p);
  if (to->freed_at != kNever) release(to);
  make_room(count - from->count);
  to->state = State::kUsed;
  if (mremap(p, from->bytes(), to->bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, to->begin()) ==
      MAP_FAILED) {
    // The system may have unmapped the destination nevertheless.
    to->state = State::kLost;
    can_move = false;
    return nullptr;
  }
  to->moved = true;
  to->awaited = from->awaited;
  to->taken_by = from->taken_by;
  restore(from, MAP_FIXED_NOREPLACE);
  return to->begin();
}

// Changes the number of pages of a block, in place if possible. Returns null if it has to be
// copied.
void* resize(void* p, size_t bytes) {
  const size_t count = pages(bytes);
  Locked locked;
  Block* const block = find_used(p);
  if (count < block->count && block_count < kMostBlocks) {
    split(block, count);
    madvise(block[1].begin(), block[1].bytes(), MADV_FREE);
    set_free(block + 1);
  }
  if (count <= block->count) return p;
  const size_t more = count - block->count;
  Block* const next = block + 1;
  // A free neighbour with memory is the hole of another block and stays.
  if (!block->moved && next < blocks + block_count && next->state == State::kFree &&
      next->freed_at == kNever && next->count > more) {
    make_room(more);
    next->first += more;
    next->count -= more;
    block->count = count;
    return p;
  }
  return can_move ? move(p, count) : nullptr;
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

EXPORT void* malloc(size_t size) {
  if (size >= kNoticeable) look_after_idle();
  if (size >= kLeast && size <= region_bytes)
    if (void* p = take(size)) return p;
  return __libc_malloc(size);
}

EXPORT void free(void* p) {
  const size_t bytes = usable(p);
  if (bytes == 0) return __libc_free(p);
  const int error = errno;  // free must not change it
  give(p, bytes);
  errno = error;
}

EXPORT void* memalign(size_t alignment, size_t size) {
  if (size >= kNoticeable) look_after_idle();
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
  const size_t had = usable(p);
  if (had == 0) return __libc_realloc(p, size);
  if (size == 0) {
    free(p);
    return nullptr;
  }
  if (size >= kLeast && size <= region_bytes)
    if (void* resized = resize(p, size)) return resized;
  void* const copy = malloc(size);
  if (copy == nullptr) return nullptr;
  memcpy(copy, p, std::min(size, had));
  free(p);
  return copy;
}

EXPORT void* reallocarray(void* p, size_t count, size_t size) {
  size_t bytes;
  if (!__builtin_mul_overflow(count, size, &bytes)) return realloc(p, bytes);
  errno = ENOMEM;
  return nullptr;
}

EXPORT size_t malloc_usable_size(void* p) {
  const size_t bytes = usable(p);
  return bytes != 0 ? bytes : usable_in_glibc ? usable_in_glibc(p) : 0;
}

// Also releases all free blocks, and forgets how many pages were ever in use.
EXPORT int malloc_trim(size_t pad) {
  {
    Locked locked;
    release_idle(0);
    most_used = 0;
  }
  return trim_glibc ? trim_glibc(pad) : 0;
}

}  // extern "C"
