// How a kernel refuses what it is given.
#pragma once

// What the CUDA library and the Python module take from the library of the ops.
#define FL_API __attribute__((visibility("default")))

namespace fused_logistic {

// By these words fused_logistic/ops.py knows it.
#define FL_OUT_OF_MEMORY "out of memory"

// A RuntimeError in Python, where fused_logistic/checks.py finds out what to tell the user.
[[noreturn]] FL_API void refuse(const char* op, const char* what);
inline void require(bool condition, const char* op, const char* what) {
  if (!condition) refuse(op, what);
}

}  // namespace fused_logistic
