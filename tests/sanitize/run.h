// What the checks of all kernels share: how a failure is told, and kernels on several threads at once.
#pragma once
#include <stdarg.h>

#include <string>
#include <thread>

#include "../../csrc/cpu/float_mode.h"
#include "values.h"

inline std::string g_case;  // what is being checked

[[noreturn]] inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "FAILED: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n  %s\n", g_case.c_str());
  abort();  // a sanitizer or a fuzzer then says where
}

inline std::vector<const fl::Isa*> supported_isas() {
  std::vector<const fl::Isa*> result;
  for (const fl::Isa& isa : fl::isas) {
    if (isa.kernel != nullptr && isa.supported()) result.push_back(&isa);
  }
  return result;
}

constexpr int kThreads = 3;

// f(first, last) of parts of [0, count), as launch.cpp has it: all in one call, or on threads that begin at once, the last of
// which had subnormal numbers flushed before.
template <class F>
void on_threads(int64_t count, bool threads, const F& f) {
  const auto part = [&](int64_t first, int64_t last) { fl::in_float_mode([&] { f(first, last); }); };
  if (!threads) return part(0, count);
  std::vector<std::thread> running;
  for (int k = 0; k < kThreads; ++k) {
    const int64_t first = count * k / kThreads, last = count * (k + 1) / kThreads;
    running.emplace_back([=, &part] {
#if defined(__SSE2__)
      if (k == kThreads - 1) _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
      if (first < last) part(first, last);
    });
  }
  for (std::thread& thread : running) thread.join();
}

// A result: bytes that are other ones before every run, so that what is not written is seen.
struct Result {
  DType dtype = DType::kFloat32;
  int64_t size = 0;
  std::vector<char> values;

  static Result copy(DType dtype, const void* data, int64_t size) {
    const char* const begin = static_cast<const char*>(data);
    return {dtype, size, std::vector<char>(begin, begin + size * size_of(dtype))};
  }
};
inline void soil(void* data, size_t bytes) {
  static unsigned char soil = 0;
  memset(data, ++soil, bytes);
}

template <class Words>
void expect_same(const Result& result, const Result& expected, const char* what, const Words& words) {
  for (int64_t i = 0; i < result.size; ++i) {
    if (same_bits(result.dtype, result.values.data(), expected.values.data(), i)) continue;
    g_case += words(i);
    fail("%s: element %lld of %lld is %.17g, expected %.17g", what, (long long)i, (long long)result.size,
         decoded<double>(result.dtype, result.values.data(), i),
         decoded<double>(result.dtype, expected.values.data(), i));
  }
}
inline void expect_same(const Result& result, const Result& expected, const char* what) {
  expect_same(result, expected, what, [](int64_t) { return ""; });
}
inline void expect_no_nan(const Result& result, const char* what) {
  for (int64_t i = 0; i < result.size; ++i) {
    const double value = decoded<double>(result.dtype, result.values.data(), i);
    if (value != value) fail("%s: element %lld of %lld is NaN", what, (long long)i, (long long)result.size);
  }
}
