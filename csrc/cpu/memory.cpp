#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/accumulate.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_logistic {
namespace {

constexpr size_t kLarge = size_t(1) << 20;     // smaller blocks are malloc's business, which reuses them itself
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

// c10::Allocator's deleter gets one pointer, so a block starts with its size, one cache line before the data.
constexpr size_t kHeader = 64;

void release(void* context) {
  if (context == nullptr) return;
  if (keeps()) context = kept().put({context, *static_cast<size_t*>(context)});
  std::free(context);
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = keeps() ? kept().take(bytes) : nullptr;
    if (block == nullptr) {
      const size_t size = (bytes + kHeader + kHugePage - 1) / kHugePage * kHugePage;
      block = std::aligned_alloc(kHugePage, size);
      TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "fused_logistic: cannot allocate ", bytes, " bytes");
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      madvise(block, size, MADV_HUGEPAGE);  // advice: failing is harmless
#endif
      *static_cast<size_t*>(block) = bytes;
    }
    return {static_cast<char*>(block) + kHeader, block, &release, c10::Device(c10::kCPU)};
  }
  // The context is not the data pointer, so the simple malloc-like interface is not offered.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }
};

}  // namespace

at::Tensor empty_cpu(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  if (c10::multiply_integers(sizes) * c10::elementSize(dtype) < kLarge) {
    return at::empty_strided(sizes, strides, at::TensorOptions().dtype(dtype));
  }
  static Allocator allocator;
  return at::detail::empty_strided_generic(sizes, strides, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           dtype);
}

at::Tensor empty_like_cpu(const at::Tensor& like, at::ScalarType dtype) {
  return empty_cpu(like.sizes(), like.strides(), dtype);
}

void empty_cache() {
  for (int i = 0; i < kKept; ++i) std::free(kept().put({}));
}

size_t cached_bytes() { return kept().bytes(); }

}  // namespace fused_logistic
