// The floating point mode that "the same bits" rests on. It is a setting of each thread: torch.set_flush_denormal sets
// that of its caller, a thread of a pool keeps what its creator had, and other libraries leave theirs behind.
#pragma once
#include <stdint.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fused_logistic {

// While it lives, this thread rounds to nearest and keeps subnormal numbers; then it does what it did before.
// Exceptions that were raised stay so.
class FloatMode {
 public:
  FloatMode() : before_(get()) {
    if ((before_ & kMask) != 0) set(before_ & ~kMask);
  }
  ~FloatMode() {
    if ((before_ & kMask) != 0) set((get() & ~kMask) | (before_ & kMask));
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__SSE2__)
  using Register = uint32_t;
  static constexpr Register kMask = 0x8000 | 0x0040 | 0x6000;  // MXCSR: flush to zero, denormals are zeros, rounding
  static Register get() { return _mm_getcsr(); }
  static void set(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kMask = (1 << 24) | (3 << 22) | (1 << 19);  // FPCR: FZ, RMode, FZ16
  static Register get() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(Register value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
  using Register = uint32_t;
  static constexpr Register kMask = 0;
  static Register get() { return 0; }
  static void set(Register) {}
#endif

  const Register before_;
};

// f() in that mode. What f computes with it reads from and writes to memory: to a compiler arithmetic does not depend
// on the mode, and only memory keeps it between the two barriers.
template <class F>
__attribute__((noinline)) void in_float_mode(const F& f) {
  const FloatMode mode;
  asm volatile("" : : : "memory");
  f();
  asm volatile("" : : : "memory");
}

}  // namespace fused_logistic
