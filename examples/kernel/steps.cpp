// From the naive kernel to a fast one, in five steps: the mean loss and its gradient of n float logits, targets 0 or 1.
// docs/kernel.md explains each step. One command, in this folder:
//
//     g++ -O3 -march=native -std=c++20 -ffp-contract=off -fno-trapping-math -fno-math-errno -pthread steps.cpp && ./a.out
//
// It prints the time of an element by each, the fastest of seven rounds, beside that of c = a + b, which reads and writes as
// much, and the loss at a logit of -20 with target 0, which is 2.06e-09.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/logistic.h"

namespace fl = fused_logistic;
using std::size_t;

// ---- 1: as the formulas of a textbook read, an array for each -----------------------------------------------------

constexpr int kExponent = 24;  // of n; an argument of the program makes it smaller, down to 11

float* temporary() {
  static std::vector<float> memory(size_t(1) << kExponent);
  return memory.data();
}

double naive(const float* z, const float* y, float* __restrict grad, size_t n, float factor) {
  float* p = temporary();
  for (size_t i = 0; i < n; ++i) p[i] = 1 / (1 + std::exp(-z[i]));
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum -= y[i] * std::log(p[i]) + (1 - y[i]) * std::log(1 - p[i]);
  for (size_t i = 0; i < n; ++i) grad[i] = (p[i] - y[i]) * factor;
  return sum;
}

// ---- 2: one loop, one exponential, no subtraction that loses digits -----------------------------------------------

double one_loop(const float* z, const float* y, float* __restrict grad, size_t n, float factor) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const float m = std::fabs(z[i]), e = std::exp(-m), s = e / (1 + e);  // s = sigma(-m)
    const float large = z[i] < 0 ? y[i] : 1 - y[i];                      // the weight of the term that grows with m
    sum += large * m + std::log1p(e);
    grad[i] = (z[i] < 0 ? s - large : large - s) * factor;
  }
  return sum;
}

// ---- 3: exp and log1p as polynomials: nothing is called, nothing branches, so the compiler takes vectors ----------

constexpr size_t kLanes = 16, kPiece = 1024;

double no_calls(const float* z, const float* y, float* __restrict grad, size_t n, float factor) {
  double sums[kLanes] = {};  // one a lane: a sum of floats may not be reordered, 16 of them side by side need not be
  for (size_t i = 0; i < n; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const float x = z[i + j], m = std::fabs(x), e = fl::exp_nonpositive(-m), s = e / (1 + e);
      const float large = x < 0 ? y[i + j] : 1 - y[i + j];
      sums[j] += large * m + fl::log1p_unit(e);
      grad[i + j] = (x < 0 ? s - large : large - s) * factor;
    }
  }
  double sum = 0;
  for (double lane : sums) sum += lane;
  return sum;
}

// ---- 4: one logarithm for 32 losses: sum of log(1 + e) = log of the product; q = product - 1 loses no digits -------

double groups(const float* z, const float* y, float* __restrict grad, size_t n, float factor) {
  // 32 of them: e <= 1, so that q < 2^32. Two vectors side by side: one is at work while the other waits.
  constexpr size_t kColumns = 2 * kLanes;
  float e[kPiece], linear[kPiece];  // these stay in the cache
  double sum = 0;
  for (size_t start = 0; start < n; start += kPiece) {
    for (size_t i = 0; i < kPiece; ++i) {
      const float x = z[start + i], m = std::fabs(x), label = y[start + i];
      const float large = x < 0 ? label : 1 - label;
      e[i] = fl::exp_nonpositive(-m);
      linear[i] = large * m;
      const float s = e[i] / (1 + e[i]);
      grad[start + i] = (x < 0 ? s - large : large - s) * factor;
    }
    float q[kColumns] = {}, total[kColumns] = {};
    for (size_t i = 0; i < kPiece; i += kColumns) {
      for (size_t j = 0; j < kColumns; ++j) {
        q[j] = fl::fma(q[j], e[i + j], q[j] + e[i + j]);
        total[j] += linear[i + j];
      }
    }
    for (size_t j = 0; j < kColumns; ++j) sum += total[j] + fl::log1p_large(q[j]);
  }
  return sum;
}

// ---- 5: the same on every core -------------------------------------------------------------------------------------

template <class Body>
void on_all_cores(size_t n, Body body) {
  const size_t cores = std::max(1u, std::thread::hardware_concurrency()), share = n / cores / kPiece * kPiece;
  std::vector<std::thread> threads;
  for (size_t c = 0; c < cores; ++c)
    threads.emplace_back([=] { body(c, c * share, c + 1 < cores ? share : n - c * share); });
  for (std::thread& thread : threads) thread.join();
}

double all_cores(const float* z, const float* y, float* __restrict grad, size_t n, float factor) {
  double sums[256] = {};  // of one core each: the order of the sum does not depend on who is first
  on_all_cores(n, [&](size_t core, size_t start, size_t count) {
    sums[core] = groups(z + start, y + start, grad + start, count, factor);
  });
  double sum = 0;
  for (double core : sums) sum += core;
  return sum;
}

// ---- The clock ---------------------------------------------------------------------------------------------------------

double add(const float* z, const float* y, float* __restrict grad, size_t n, float) {
  for (size_t i = 0; i < n; ++i) grad[i] = z[i] + y[i];
  return 0;
}
double add_on_all_cores(const float* z, const float* y, float* __restrict grad, size_t n, float) {
  on_all_cores(n, [&](size_t, size_t start, size_t count) { add(z + start, y + start, grad + start, count, 0); });
  return 0;
}

struct Step {
  const char* name;
  double (*run)(const float*, const float*, float*, size_t, float);
  std::vector<double> seconds;
};

int main(int argc, char** argv) {
  const size_t n = size_t(1) << (argc > 1 ? std::atoi(argv[1]) : kExponent);
  std::vector<float> z(n), y(n), grad(n);
  std::mt19937 random(0);
  std::normal_distribution<float> normal(0, 3);
  for (size_t i = 0; i < n; ++i) z[i] = normal(random), y[i] = float(random() & 1);
  Step steps[] = {{"c = a + b", add},
                  {"1 naive", naive},
                  {"2 one loop", one_loop},
                  {"3 no calls", no_calls},
                  {"4 one logarithm for 32 losses", groups},
                  {"c = a + b, all cores", add_on_all_cores},
                  {"5 all cores", all_cores}};
  for (int round = 0; round < 8; ++round) {  // all in turn, so that a slow moment hits all
    for (Step& step : steps) {
      const auto start = std::chrono::steady_clock::now();
      step.run(z.data(), y.data(), grad.data(), n, 1.0f / n);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      if (round > 0) step.seconds.push_back(taken.count());  // the first one touches the memory
    }
  }
  std::vector<float> tail(kPiece, -20.0f), zeros(kPiece), unused(kPiece);
  for (Step& step : steps) {
    const double fastest = *std::min_element(step.seconds.begin(), step.seconds.end());
    const double mean = step.run(z.data(), y.data(), grad.data(), n, 1.0f / n) / n;
    const double loss = step.run(tail.data(), zeros.data(), unused.data(), kPiece, 1) / kPiece;
    printf("%-30s %6.2f ns an element", step.name, 1e9 * fastest / n);
    if (mean != 0) printf(", mean %.9f, loss at -20: %.3g", mean, loss);
    printf("\n");
  }
}
