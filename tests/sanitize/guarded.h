// Memory whose every byte is accounted for: unmapped pages before and behind, which a vector that reaches over the end cannot
// load or store, with or without a sanitizer; with AddressSanitizer the rest of the pages is poisoned too.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <vector>

#include "choices.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FL_ASAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define FL_ASAN
#endif
#if defined(FL_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

class GuardedPages {
 public:
  static constexpr size_t kPage = 4096, kBytes = size_t(1) << 20;

  GuardedPages() {
    void* const mapped =
        mmap(nullptr, kBytes + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    begin_ = static_cast<char*>(mapped) + kPage;
    if (mapped == MAP_FAILED || mprotect(mapped, kPage, PROT_NONE) != 0 ||
        mprotect(begin_ + kBytes, kPage, PROT_NONE) != 0) {
      perror("mmap");
      abort();
    }
    ASAN_POISON_MEMORY_REGION(begin_, kBytes);
  }
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;
  ~GuardedPages() {
    ASAN_UNPOISON_MEMORY_REGION(begin_, kBytes);
    munmap(begin_ - kPage, kBytes + 2 * kPage);
  }

  // At the end of the pages; at their begin; or some elements behind it, so that every alignment occurs.
  char* place(size_t bytes, size_t element_bytes, Choices& choices) {
    if (bytes + 64 * element_bytes > kBytes) abort();
    ASAN_POISON_MEMORY_REGION(placed_, placed_bytes_);
    const uint64_t where = choices.below(4);
    placed_ = where < 2 ? begin_ + kBytes - bytes : where == 2 ? begin_ : begin_ + element_bytes * choices.below(64);
    placed_bytes_ = bytes;
    ASAN_UNPOISON_MEMORY_REGION(placed_, placed_bytes_);
    return placed_;
  }
  const void* behind() const { return begin_ + kBytes; }  // no byte of which may be touched

 private:
  char *begin_ = nullptr, *placed_ = nullptr;
  size_t placed_bytes_ = 0;
};

// The buffers of one case; those of the case before are given out again.
class Arena {
 public:
  char* take(size_t bytes, size_t element_bytes, Choices& choices) {
    if (used_ == pages_.size()) pages_.push_back(std::make_unique<GuardedPages>());
    return pages_[used_++]->place(bytes, element_bytes, choices);
  }
  const void* untouchable() {
    if (pages_.empty()) pages_.push_back(std::make_unique<GuardedPages>());
    return pages_[0]->behind();
  }
  void clear() { used_ = 0; }

 private:
  std::vector<std::unique_ptr<GuardedPages>> pages_;
  size_t used_ = 0;
};
