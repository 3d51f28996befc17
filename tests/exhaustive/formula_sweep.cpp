// The greatest errors of csrc/logistic.h, in units in the last place, against references with at least 29 more bits:
// float over every STRIDE-th non-negative bit pattern and its negative, double over structured and random logits.
//
//     formula_sweep STRIDE RANDOM_PER_BINADE        STRIDE 1 is exhaustive; prints JSON
//
// test_formula_exhaustive.py builds and runs this with -O2 -ffp-contract=off -mfma -lquadmath.
#include "exact.h"

// ---- The sweep -----------------------------------------------------------------------------------------------------

struct Report {
  Worst loss[2], grad[2];  // by target
};

template <class T>
void check(T m, Report& report) {
  using E = Exact<T>;
  using Wide = typename E::Wide;
  const Wide e = E::exp(-(Wide)m), l = E::log1p(e);
  const Wide sigma = 1 / (1 + e), sigma_minus = e / (1 + e);
  for (int negative = 0; negative < 2; ++negative) {
    const T z = negative ? -m : m;
    const fl::Logit<T> parts = fl::logit(z);
    for (int y = 0; y < 2; ++y) {
      const fl::TermWeights<T> weights = fl::term_weights(T(y));
      const bool right = negative != y;  // the logit has the target's sign, so both values are small
      report.loss[y].update(ulps<T>(fl::loss(parts, weights), right ? l : m + l), z);
      const Wide size = right ? sigma_minus : sigma;
      report.grad[y].update(ulps<T>(fl::grad_logit(parts, weights, T(1)), y ? -size : size), z);
    }
  }
}

template <class Body>
Report in_parallel(Body body) {
  std::vector<Report> reports(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { body(i, reports[i]); });
  for (std::thread& thread : threads) thread.join();
  for (int y = 0; y < 2; ++y) {
    for (const Report& r : reports) reports[0].loss[y].update(r.loss[y]), reports[0].grad[y].update(r.grad[y]);
  }
  return reports[0];
}

Report sweep_float(uint32_t stride) {
  return in_parallel([stride](int thread, Report& report) {
    for (uint64_t bits = uint64_t(thread) * stride; bits < 0x7f800000u; bits += uint64_t(kThreads) * stride) {
      check(fl::bit_cast<float>(uint32_t(bits)), report);
    }
  });
}

// Per binade from 2^-60 to 2^10: mantissas with one bit or a run of bits set or cleared, and random ones. Then the
// neighbourhood of each multiple of ln 2 / 2, where t is near 0 or n changes; and large numbers.
Report sweep_double(int random_per_binade) {
  return in_parallel([random_per_binade](int thread, Report& report) {
    constexpr uint64_t kMantissa = (uint64_t(1) << 52) - 1;
    std::mt19937_64 random(thread);
    for (int exponent = -60 + thread; exponent <= 10; exponent += kThreads) {
      const uint64_t binade = uint64_t(1023 + exponent) << 52;
      for (int i = 0; i < 52; ++i) {
        const uint64_t one = uint64_t(1) << i, below = one - 1;
        for (uint64_t mantissa : {one, below, kMantissa ^ one, kMantissa ^ below}) {
          check(fl::bit_cast<double>(binade | mantissa), report);
        }
      }
      for (int i = 0; i < random_per_binade; ++i) check(fl::bit_cast<double>(binade | (random() & kMantissa)), report);
    }
    for (int k = 1 + thread; k < 2160; k += kThreads) {
      const uint64_t multiple = fl::bit_cast<uint64_t>(k * (M_LN2 / 2));
      for (int64_t offset = -8; offset <= 8; ++offset) check(fl::bit_cast<double>(multiple + offset), report);
    }
    for (double m : {0.0, 0x1p-1074, 0x1p-1022, 0x1p-600, 0x1p20, 0x1p1000, 0x1.fffffffffffffp1023}) check(m, report);
  });
}

// How many pairs of e and a start off by -2 ... 2 ulp give another quotient than the division does.
long quotient_failures(uint32_t stride) {
  long failures = 0;
  for (uint64_t bits = 0; bits <= 0x3f800000u; bits += stride) {
    const float e = fl::bit_cast<float>(uint32_t(bits)), d = 1 + e, quotient = e / d;
    const uint32_t reciprocal = fl::bit_cast<uint32_t>(1 / d);
    for (int off = -2; off <= 2; ++off) {
      failures += fl::quotient_from(fl::bit_cast<float>(reciprocal + off), e, d) != quotient;
    }
  }
  return failures;
}

// How many NaNs (any sign, any payload that is one bit or a run of bits) come out as a number.
template <class T>
long nan_lost() {
  using Bits = typename fl::Value<T>::Bits;
  constexpr int kMantissaBits = fl::Coefficients<T>::mantissa_bits;
  const Bits infinity = fl::bit_cast<Bits>(T(INFINITY)), sign = Bits(1) << (8 * sizeof(Bits) - 1);
  long lost = 0;
  for (int i = 0; i < kMantissaBits; ++i) {
    for (Bits payload : {Bits(1) << i, (Bits(2) << i) - 1}) {
      for (Bits bits : {infinity | payload, sign | infinity | payload}) {
        const fl::Logit<T> parts = fl::logit(fl::bit_cast<T>(bits));
        for (int y = 0; y < 2; ++y) {
          const T loss = fl::loss(parts, fl::term_weights(T(y))),
                  grad = fl::grad_logit(parts, fl::term_weights(T(y)), T(1));
          lost += (loss == loss) + (grad == grad);
        }
      }
    }
  }
  return lost;
}

void print(const char* name, const Report& report) {
  printf("\"%s\": {", name);
  for (int y = 0; y < 2; ++y) {
    printf("%s\"loss, target %d\": {\"ulp\": %.4f, \"logit\": \"%a\"}, ", y ? ", " : "", y, report.loss[y].ulp,
           report.loss[y].logit);
    printf("\"grad, target %d\": {\"ulp\": %.4f, \"logit\": \"%a\"}", y, report.grad[y].ulp, report.grad[y].logit);
  }
  printf("}, ");
}

int main(int argc, char** argv) {
  const uint32_t stride = argc > 1 ? strtoul(argv[1], nullptr, 10) : 997;
  const int random_per_binade = argc > 2 ? atoi(argv[2]) : 4000;
  printf("{");
  print("float", sweep_float(stride));
  print("double", sweep_double(random_per_binade));
  printf("\"quotient_failures\": %ld, ", quotient_failures(stride));
  printf("\"nan_lost\": %ld}\n", nan_lost<float>() + nan_lost<double>());
}
