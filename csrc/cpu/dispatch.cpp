// Which kernels run: the fastest instruction set that this CPU supports, or what FUSED_LOGISTIC_ISA asks for.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace fused_logistic {
namespace {

bool always() { return true; }
#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Isa* find(const std::string& name) {
  std::string known;
  for (const Isa& candidate : isas) {
    if (candidate.kernel == nullptr) continue;
    if (name == candidate.name) {
      if (candidate.supported()) return &candidate;
      throw std::invalid_argument("fused_logistic: FUSED_LOGISTIC_ISA=" + name + ": this CPU does not support " + name);
    }
    known += std::string(known.empty() ? "" : ", ") + candidate.name;
  }
  throw std::invalid_argument("fused_logistic: FUSED_LOGISTIC_ISA: expected one of " + known + ", got '" + name + "'");
}

const Isa* choose() {
  const char* name = std::getenv("FUSED_LOGISTIC_ISA");
  if (name != nullptr && *name != '\0') return find(name);
  for (const Isa& candidate : isas) {
    if (candidate.kernel != nullptr && candidate.supported()) return &candidate;
  }
  return nullptr;  // not reached: the baseline is always there
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa{choose()};
  return isa;
}

}  // namespace

const Isa isas[kMaxIsas] = {
#if defined(__x86_64__)
    {"avx512", &avx512_kernel, &has_avx512, &avx512_linear_kernel, &avx512_pairs_kernel},
    {"avx2", &avx2_kernel, &has_avx2, &avx2_linear_kernel, &avx2_pairs_kernel},
#endif
    {"baseline", &baseline_kernel, &always, &baseline_linear_kernel, &baseline_pairs_kernel},
};

const Isa& isa() { return *chosen().load(std::memory_order_relaxed); }
void set_isa(const char* name) { chosen().store(find(name)); }

double ordered_sum(double* partial, int64_t count) {
  // The same order as within a chunk, applied to the chunks' sums until one is left.
  for (; count > 1; count = chunks(count)) {
    for (int64_t chunk = 0; chunk < chunks(count); ++chunk) {
      const int64_t begin = chunk * kChunk, end = begin + kChunk < count ? begin + kChunk : count;
      double lanes[kLanes] = {};
      for (int64_t i = begin; i < end; ++i) lanes[(i - begin) % kLanes] += partial[i];
      for (int64_t left = kLanes / 2; left >= 1; left /= 2) {
        for (int64_t i = 0; i < left; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
      }
      partial[chunk] = lanes[0];
    }
  }
  return count == 0 ? 0 : partial[0];
}

}  // namespace fused_logistic
