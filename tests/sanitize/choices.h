// Where a case comes from: a generator of random numbers (driver.cpp) or a fuzzer's bytes (fuzz_kernels.cpp).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <initializer_list>

class Choices {
 public:
  virtual ~Choices() = default;
  virtual uint64_t take(int bytes) = 0;

  uint64_t below(uint64_t n) { return take(n <= 256 ? 1 : n <= 65536 ? 2 : 8) % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[below(list.size())];
  }
};

class Random : public Choices {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t take(int bytes) override {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) >> (64 - 8 * bytes);
  }

 private:
  uint64_t state_;
};

class Bytes : public Choices {  // zeros behind the end
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}
  uint64_t take(int bytes) override {
    uint64_t value = 0;
    for (int i = 0; i < bytes && data_ < end_; ++i) value |= uint64_t(*data_++) << (8 * i);
    return value;
  }

 private:
  const uint8_t *data_, *const end_;
};
