// The greatest error of each function of csrc/logistic.h and losses.h over the range that its comment names; prints JSON.
//
//     functions_sweep STRIDE RANDOM        STRIDE 1: every float, of the functions of one argument; RANDOM: arguments each
//                                          of the others and of double
//
// test_formula_exhaustive.py builds and runs this, and compares with what the comments say.
#include "exact.h"

enum Function {
  kExpNonpositive,
  kExpTwoParts,
  kLog1pUnit,
  kLog1pRatio,
  kLogUnit,
  kLog1pLarge,
  kSigmaMinus,
  kLoss,
  kGradLogit,
  kGradTarget,
  kGradPosWeight,
  kFocal,
  kFocalLoss,
  kFocalGradLogit,
  kFocalGradTarget,
  kCount
};
constexpr const char* kNames[] = {
    "exp_nonpositive",    "exp_two_parts",         "log1p_unit",        "log1p_ratio",
    "log_unit",           "log1p_large",           "sigma_minus",       "loss",
    "grad_logit",         "grad_target",           "grad_pos_weight",   "focal",
    "FocalLossOf::value", "FocalLossOf::by_logit", "focal_grad_target",
};
static_assert(sizeof(kNames) / sizeof(*kNames) == kCount, "");

struct Report {
  Worst of[kCount];
};

// ---- Functions of one argument -------------------------------------------------------------------------------------

template <class T>
void check_exp(T x, Report& report) {
  report.of[kExpNonpositive].update(ulps<T>(fl::exp_nonpositive(x), Exact<T>::exp(x)), x);
}

template <class T>
void check_log(T u, Report& report) {
  using E = Exact<T>;
  using Wide = typename E::Wide;
  const fl::TwoParts<T> log = fl::log_unit(u);
  const Wide error = (Wide)log.high + (Wide)log.low - E::log(u);
  report.of[kLogUnit].update(double((error < 0 ? -error : error) * E::power(E::bits)), u);
}

template <class T>
void check_large(T q, Report& report) {
  report.of[kLog1pLarge].update(ulps<T>(fl::log1p_large(q), Exact<T>::log1p(q)), q);
}

template <class T>
void check_unit(T e, Report& report) {
  using E = Exact<T>;
  using Wide = typename E::Wide;
  const Wide wide = e, l = E::log1p(wide);
  report.of[kLog1pUnit].update(ulps<T>(fl::log1p_unit(e), l), e);
  report.of[kLog1pRatio].update(ulps<T>(fl::log1p_ratio(e), e == 0 ? Wide(1) : l / wide), e);
  report.of[kSigmaMinus].update(ulps<T>(fl::sigma_minus(e), wide / (1 + wide)), e);
  if (e > 0) check_log(e, report);
}

// ---- An element ----------------------------------------------------------------------------------------------------

template <class Wide>
Wide larger(Wide x, Wide y) {
  x = x < 0 ? -x : x;
  y = y < 0 ? -y : y;
  return x < y ? y : x;
}

// The loss and its derivatives in the wider type, each as two terms.
template <class T>
struct Truth {
  using E = Exact<T>;
  using Wide = typename E::Wide;
  Wide m, e, l, positive, negative;  // softplus(-z), softplus(z)
  bool below;
  explicit Truth(T z) {
    below = z < 0;
    m = below ? -(Wide)z : (Wide)z;
    e = E::exp(-m);
    l = E::log1p(e);
    positive = below ? m + l : l;
    negative = below ? l : m + l;
  }
  Wide sigma(bool minus) const { return (below != minus ? e : 1) / (1 + e); }
};

template <class T>
void check_element(T z, T y, T p, T w, Report& report) {
  using Wide = typename Exact<T>::Wide;
  const Truth<T> truth(z);
  const Wide a = (Wide)w * p * y, b = (Wide)w * (1 - (Wide)y);
  const fl::Logit<T> parts = fl::logit(z);
  const fl::TermWeights<T> weights = fl::term_weights(y, p, w);
  report.of[kLoss].update(ulps<T>(fl::loss(parts, weights), a * truth.positive + b * truth.negative), z);
  const Wide up = b * truth.sigma(false), down = a * truth.sigma(true);
  report.of[kGradLogit].update(ulps<T>(fl::grad_logit(parts, weights, T(1)), up - down, larger(up, down)), z);
  const Wide plus = (Wide)w * p * truth.positive, minus = (Wide)w * truth.negative;
  report.of[kGradTarget].update(ulps<T>(fl::grad_target(parts, p, w), plus - minus, larger(plus, minus)), z);
  report.of[kGradPosWeight].update(ulps<T>(fl::grad_pos_weight(parts, y, w), (Wide)w * y * truth.positive), z);
}

// Without alpha and weights: what they add is as above.
template <class T>
void check_focal(T z, T y, double gamma, Report& report) {
  using E = Exact<T>;
  using Wide = typename E::Wide;
  const Truth<T> truth(z);
  const Wide c = truth.below ? (Wide)y : 1 - (Wide)y, u = c + (1 - c) * truth.e;
  const Wide log_q = (c == 0 ? -truth.m : E::log(u)) - truth.l;
  const Wide lowest = (E::least_exponent + E::bits) * (Wide)M_LN2;
  if (gamma * log_q < lowest) return;  // q^gamma times anything here is a normal number
  const Wide power = E::exp(gamma * log_q), loss = y * truth.positive + (1 - (Wide)y) * truth.negative;
  const fl::Logit<T> parts = fl::logit(z);
  const fl::TermWeights<T> weights = fl::term_weights(y);
  fl::Settings<T> settings = {};
  settings.focal = fl::focal_constants<T>(gamma, 1, 1);
  const double unit = 1 + gamma;
  const Wide grad = (1 - (Wide)y) * truth.sigma(false) - y * truth.sigma(true);
  const Wide slope = gamma * (1 - 2 * (Wide)y) * truth.e / (1 + truth.e) / u * loss;
  const Wide terms = larger(larger((1 - (Wide)y) * truth.sigma(false), y * truth.sigma(true)), slope);
  const auto check = [&](auto of) {
    using L = decltype(of);
    const auto factors = L::template factors<false>(parts, y, settings);
    report.of[kFocal].update(ulps<T>(factors.power, power) / unit, z);
    report.of[kFocalLoss].update(ulps<T>(L::value(parts, factors, weights), power * loss) / unit, z);
    const T by_logit = L::by_logit(parts, factors, weights, T(1));
    report.of[kFocalGradLogit].update(ulps<T>(by_logit, power * (grad + slope), power * terms) / unit, z);
  };
  check(fl::FocalLossOf<false>{});
  if (gamma == int(gamma) && gamma <= 4) check(fl::FocalLossOf<true>{});
  const Wide by_log = gamma / u * loss, change = (truth.below ? by_log : -by_log) * (1 - truth.e);
  const T by_target = fl::focal_grad_target(parts, y, T(1), T(1), settings.focal);
  // 1 - e cancels near z = 0, where the derivative is small beside what it is made of
  const Wide made_of = power * larger(by_log, (Wide)z);
  report.of[kFocalGradTarget].update(ulps<T>(by_target, power * (change - (Wide)z), made_of) / unit, z);
}

template <class T>
void check_elements(long count, std::mt19937_64& random, Report& report) {
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * std::uniform_real_distribution<double>()(random);
  };
  const auto logit = [&]() -> T {
    const double sign = random() % 2 ? 1 : -1;
    const double size = random() % 3   ? uniform(0, 6)
                        : random() % 2 ? uniform(0, 60)
                                       : ldexp(uniform(1, 2), -int(random() % 40));
    return T(sign * size);
  };
  const auto target = [&]() -> T { return random() % 2 ? T(random() % 2) : T(uniform(0, 1)); };
  for (long i = 0; i < count; ++i) {
    check_element<T>(logit(), target(), T(uniform(0.1, 4)), T(uniform(0.1, 4)), report);
    constexpr double kGammas[] = {0, 0.5, 1, 2, 2.7, 3, 4, 5, 8};
    check_focal<T>(logit(), target(), kGammas[random() % 9], report);
    const bool positive = random() % 2;
    const T x = T(positive ? uniform(0, 80) : -uniform(0, 80)),
            rest = T(uniform(-0.5, 0.5) * ldexp(double(x), -Exact<T>::bits));
    const auto sum = (typename Exact<T>::Wide)x + rest;
    report.of[kExpTwoParts].update(ulps<T>(fl::exp_two_parts(x, rest, positive), Exact<T>::exp(sum)), x);
  }
}

// ---- The sweep -----------------------------------------------------------------------------------------------------

template <class Body>
Report in_parallel(Body body) {
  std::vector<Report> reports(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { body(i, reports[i]); });
  for (std::thread& thread : threads) thread.join();
  for (int function = 0; function < kCount; ++function) {
    for (const Report& report : reports) reports[0].of[function].update(report.of[function]);
  }
  return reports[0];
}

Report sweep_float(uint32_t stride, long count) {
  return in_parallel([=](int thread, Report& report) {
    for (uint64_t bits = uint64_t(thread) * stride; bits <= 0x7f800000u; bits += uint64_t(kThreads) * stride) {
      check_exp(-fl::bit_cast<float>(uint32_t(bits)), report);
      if (bits <= 0x3f800000u) check_unit(fl::bit_cast<float>(uint32_t(bits)), report);
      if (bits <= 0x4f800000u) check_large(fl::bit_cast<float>(uint32_t(bits)), report);                      // to 2^32
      if (bits > 0x3f800000u && bits <= 0x5e800000u) check_log(fl::bit_cast<float>(uint32_t(bits)), report);  // to 2^62
    }
    std::mt19937_64 random(thread);
    check_elements<float>(count, random, report);
  });
}

Report sweep_double(long count) {
  return in_parallel([=](int thread, Report& report) {
    std::mt19937_64 random(thread);
    for (long i = 0; i < count; ++i) {
      const double mantissa = 1 + ldexp(double(random() >> 12), -52);
      check_exp(-ldexp(mantissa, int(random() % 72) - 62), report);
      check_exp(-745 * (mantissa - 1), report);
      check_log(ldexp(mantissa, int(random() % 62)), report);
      check_large(ldexp(mantissa, int(random() % 40) - 8), report);
      check_unit(ldexp(mantissa, -1 - int(random() % (i % 8 ? 4 : 1060))), report);
    }
    check_unit(1.0, report);
    check_unit(0.0, report);
    check_elements<double>(count, random, report);
  });
}

void print(const char* scalar, const Report& report, const char* end) {
  printf("\"%s\": {", scalar);
  for (int function = 0; function < kCount; ++function) {
    const Worst& worst = report.of[function];
    printf("%s\"%s\": {\"ulp\": %.4f, \"at\": \"%a\"}", function ? ", " : "", kNames[function], worst.ulp, worst.logit);
  }
  printf("}%s", end);
}

int main(int argc, char** argv) {
  const uint32_t stride = argc > 1 ? strtoul(argv[1], nullptr, 10) : 997;
  const long count = argc > 2 ? atol(argv[2]) : 100000;
  printf("{");
  print("float", sweep_float(stride, count), ", ");
  print("double", sweep_double(count / 8), "}\n");
}
