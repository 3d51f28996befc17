// Memory for large results. Fresh pages cost more than computing what is written to them, and a training step frees its
// gradient and asks for the same size again: so the last freed blocks are kept for the next request.
#pragma once
#include <stddef.h>

#include "../refuse.h"

namespace fused_logistic {

constexpr size_t kLargeBlock = size_t(1) << 20;  // smaller blocks are malloc's business, which reuses them itself

void* take_block(size_t bytes);  // aligned to a cache line; null where there is no memory
void release_block(void* data);

// Returns the kept blocks to the system; FUSED_LOGISTIC_CACHE=0 keeps none in the first place.
FL_API void empty_cache();
FL_API size_t cached_bytes();

}  // namespace fused_logistic
