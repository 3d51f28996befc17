#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_logistic {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;  // also the alignment of the blocks
constexpr int kKept = 2;                       // one for each of two losses, or for a loss and a hidden gradient

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

class KeptBlocks {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Block& block : blocks_) {
      if (block.data != nullptr && block.bytes == bytes) {
        void* const data = block.data;
        block = {};
        return data;
      }
    }
    return nullptr;
  }
  // Keeps the block, in place of the one that has been kept longest; returns what is to be freed.
  void* put(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* const oldest = blocks_[next_].data;
    blocks_[next_] = block;
    next_ = (next_ + 1) % kKept;
    return oldest;
  }
  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t sum = 0;
    for (const Block& block : blocks_) sum += block.data != nullptr ? block.bytes : 0;
    return sum;
  }

 private:
  std::mutex mutex_;
  Block blocks_[kKept];
  int next_ = 0;
};

KeptBlocks& kept() {
  static KeptBlocks* blocks = new KeptBlocks;  // never destroyed: tensors may outlive every static
  return *blocks;
}

bool keeps() {
  static const bool value = [] {
    const char* setting = std::getenv("FUSED_LOGISTIC_CACHE");
    return setting == nullptr || std::strcmp(setting, "0") != 0;
  }();
  return value;
}

// Whoever releases a block has the data pointer alone, so a block starts with its size, one cache line before the data.
constexpr size_t kHeader = 64;

}  // namespace

void* take_block(size_t bytes) {
  void* block = keeps() ? kept().take(bytes) : nullptr;
  if (block == nullptr) {
    const size_t size = (bytes + kHeader + kHugePage - 1) / kHugePage * kHugePage;
    block = std::aligned_alloc(kHugePage, size);
    if (block == nullptr) {
      empty_cache();  // what is kept may be what is missing
      block = std::aligned_alloc(kHugePage, size);
      if (block == nullptr) return nullptr;
    }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(block, size, MADV_HUGEPAGE);  // advice: failing is harmless
#endif
    *static_cast<size_t*>(block) = bytes;
  }
  return static_cast<char*>(block) + kHeader;
}

void release_block(void* data) {
  void* block = static_cast<char*>(data) - kHeader;
  if (keeps()) block = kept().put({block, *static_cast<size_t*>(block)});
  std::free(block);
}

void empty_cache() {
  for (int i = 0; i < kKept; ++i) std::free(kept().put({}));
}

size_t cached_bytes() { return kept().bytes(); }

}  // namespace fused_logistic
