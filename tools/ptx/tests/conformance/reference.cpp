// The same operations on the CPU, and their names. Compile with -frounding-math -ffp-contract=off.
#include "operations.h"

#include <vector>

namespace {
struct Record {
  uint64_t* next;
  int64_t stride;
  void operator()(const char*, uint64_t result) {
    *next = result;
    next += stride;
  }
};

struct Names {
  std::vector<const char*> list;
  void operator()(const char* name, uint64_t) { list.push_back(name); }
};
}  // namespace

// Name of an operation: groups are 0 integers, 1 floats, 2 doubles, 3 halves. Null after the last of a group.
extern "C" const char* operation_name(int group, int index) {
  Names names;
  if (group == 0) integer_operations(1, 1, 1, names);
  if (group == 1) float_operations(1, 1, 1, names);
  if (group == 2) double_operations(1, 1, 1, 1, names);
  if (group == 3) half_operations(1, 1, 1, names);
  return index < int(names.list.size()) ? names.list[index] : nullptr;
}

extern "C" void reference(int64_t n, const uint64_t* a, const uint64_t* b, const uint64_t* c, const float* f,
                          const double* d, uint64_t* integers, uint64_t* floats, uint64_t* doubles, uint64_t* halves) {
  for (int64_t i = 0; i < n; ++i) {
    Record to_integers{integers + i, n}, to_floats{floats + i, n}, to_doubles{doubles + i, n}, to_halves{halves + i, n};
    integer_operations(a[i], b[i], c[i], to_integers);
    float_operations(f[i], f[n + i], f[2 * n + i], to_floats);
    double_operations(d[i], d[n + i], d[2 * n + i], int64_t(a[i]), to_doubles);
    half_operations(a[i], b[i], c[i], to_halves);
  }
}
