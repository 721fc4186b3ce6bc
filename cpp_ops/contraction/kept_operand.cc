#include "contraction/kept_operand.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <new>
#include <set>
#include <utility>

namespace dfpjax {
namespace {

constexpr size_t kLine = 64;      // of the cache
constexpr size_t kSamples = 128;  // lines of a fingerprint
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
constexpr size_t kPiece = size_t{128} << 10;

std::atomic<size_t> kept{0};

struct Sites {
  std::mutex mutex;
  std::set<KeptOperand*> all;
};

// Never destroyed: executables may outlive the module's static objects.
Sites& sites() {
  static Sites* const instance = new Sites;
  return *instance;
}

// The loop visit(start, size) over the pieces of so many bytes.
template <class F>
Loop in_pieces(size_t size, F visit) {
  return {static_cast<int64_t>((size + kPiece - 1) / kPiece), 1,
          [size, visit](int, int64_t low, int64_t high) {
            const size_t start = static_cast<size_t>(low) * kPiece;
            visit(start, std::min(size, static_cast<size_t>(high) * kPiece) - start);
          }};
}

}  // namespace

KeptShare::KeptShare(size_t bytes) : bytes_(bytes) {
  if (kept.fetch_add(bytes) + bytes <= kKeptLimit) return;
  kept.fetch_sub(bytes);
  bytes_ = 0;
}

KeptShare::~KeptShare() { kept.fetch_sub(bytes_); }

size_t kept_operand_bytes() { return kept.load(); }

void release_kept_operands() {
  Sites& s = sites();
  std::lock_guard<std::mutex> lock(s.mutex);
  for (KeptOperand* site : s.all) site->release();
}

KeptOperand::KeptOperand() {
  Sites& s = sites();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.all.insert(this);
}

KeptOperand::~KeptOperand() {
  Sites& s = sites();
  std::lock_guard<std::mutex> lock(s.mutex);
  s.all.erase(this);
}

void KeptOperand::release() {
  std::lock_guard<std::mutex> lock(mutex_);
  last_.reset();
  kept_.reset();
}

OperandReuse::OperandReuse(KeptOperand* site, const int16_t* b, int64_t size,
                           const int32_t* exponents, int64_t exponents_size)
    : site_(site),
      mantissas_{reinterpret_cast<const char*>(b), static_cast<size_t>(size) * sizeof *b},
      exponents_{reinterpret_cast<const char*>(exponents),
                 static_cast<size_t>(exponents_size) * sizeof *exponents} {}

// Of evenly spaced lines.
uint64_t OperandReuse::fingerprint(const Bytes& bytes, uint64_t hash) {
  const size_t lines = (bytes.size + kLine - 1) / kLine, samples = std::min(lines, kSamples);
  for (size_t i = 0; i < samples; ++i) {
    const size_t start = lines * i / samples * kLine;
    uint64_t words[kLine / sizeof(uint64_t)] = {};
    std::memcpy(words, bytes.data + start, std::min(kLine, bytes.size - start));
    uint64_t line = 0;
    for (size_t j = 0; j < std::size(words); ++j) line += words[j] * (kOdd + 2 * j);
    hash = (hash ^ line) * kOdd;
    hash ^= hash >> 32;
  }
  return hash;
}

void OperandReuse::look_up() {
  if (site_ == nullptr || differs_) return;
  fingerprint_ = fingerprint(exponents_, fingerprint(mantissas_, 0));
  std::lock_guard<std::mutex> lock(site_->mutex_);
  site_->equal_ = site_->last_ == fingerprint_ ? site_->equal_ + 1 : 0;
  site_->last_ = fingerprint_;
  again_ = site_->equal_ >= site_->enough_;
  if (site_->equal_ == 0) site_->kept_.reset();
  found_ = site_->kept_;
}

bool OperandReuse::offer(std::shared_ptr<const PreparedOperand> prepared) {
  if (!again_) return false;
  try {
    auto kept =
        std::make_shared<KeptOperand::Kept>(prepared->bytes() + mantissas_.size + exponents_.size);
    if (!kept->share.granted()) return false;
    kept->mantissas = Scratch(static_cast<int64_t>(mantissas_.size));
    kept->exponents = Scratch(static_cast<int64_t>(exponents_.size));
    kept->prepared = std::move(prepared);
    offered_ = std::move(kept);
  } catch (const std::bad_alloc&) {
    return false;  // the call needs no copy
  }
  return true;
}

void OperandReuse::enlist(Stage* stage) {
  const auto compare = [this, stage](const Bytes& b, const Scratch& copy) {
    stage->push_back(in_pieces(b.size, [this, from = b.data, to = copy.as<char>()](size_t at,
                                                                                   size_t size) {
      if (!differs_.load(std::memory_order_relaxed) && std::memcmp(from + at, to + at, size) != 0)
        differs_.store(true, std::memory_order_relaxed);
    }));
  };
  const auto copy = [stage](const Bytes& b, const Scratch& copy) {
    stage->push_back(
        in_pieces(b.size, [from = b.data, to = copy.as<char>()](size_t at, size_t size) {
          std::memcpy(to + at, from + at, size);
        }));
  };
  if (found()) {
    compare(mantissas_, found_->mantissas);
    compare(exponents_, found_->exponents);
  } else if (offered_ != nullptr) {
    copy(mantissas_, offered_->mantissas);
    copy(exponents_, offered_->exponents);
  }
}

bool OperandReuse::finish() {
  if (offered_ != nullptr) {
    std::lock_guard<std::mutex> lock(site_->mutex_);
    if (site_->last_ == fingerprint_) site_->kept_ = std::move(offered_);
  }
  if (!found()) return true;
  if (!differs_) {
    found_->uses.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  std::lock_guard<std::mutex> lock(site_->mutex_);
  if (site_->kept_ == found_) {  // no other call has dropped it
    site_->kept_.reset();
    site_->equal_ = 0;
    if (found_->uses < kCallsUntilKept) site_->enough_ *= 2;
  }
  again_ = false;
  found_.reset();
  return false;
}

}  // namespace dfpjax
