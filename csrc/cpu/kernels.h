// The CPU kernels as the rest of the library sees them: one function per instruction set, chosen at run time.
#pragma once
#include "../problem.h"

namespace fused_logistic {

// Chunks [first, last) of the problem: writes the elementwise output, and the sum of each chunk to partials[chunk]
// where the output has one (else partials is not touched).
using ChunkKernel = void(const Problem& problem, int64_t first, int64_t last, Output output, double* partials);

ChunkKernel baseline_kernel, avx2_kernel, avx512_kernel;  // the last two on x86-64 only

// The sum of partial[0 .. count) in the order that problem.h fixes; overwrites partial.
double ordered_sum(double* partial, int64_t count);

struct Isa {
  const char* name;
  ChunkKernel* kernel;
  bool (*supported)();
};
constexpr int kMaxIsas = 3;
extern const Isa isas[kMaxIsas];  // fastest first; a null kernel: not built
const Isa& isa();                 // the one in use: FUSED_LOGISTIC_ISA, else the fastest that this CPU supports
void set_isa(const char* name);   // throws std::invalid_argument for an unknown or unsupported name

}  // namespace fused_logistic
