// Problems of every kind that the torch glue makes (tensors.cpp), and what must hold of a kernel's results:
// the same bits on every instruction set, on several threads, and where each operand is laid out in full in the type of the
// arithmetic; no NaN for ordinary values; one element's sum is its loss.
#pragma once
#include <set>
#include <tuple>

#include "run.h"

struct Elements {
  Output output;
  Problem problem;
  bool any = false, in_place = false;
  std::vector<char> logits;  // as they were, where the output takes their place
  std::string words;
};

// Which kernel it is, as far as a driver enumerates it.
struct KernelOf {
  Output output;
  int loss;  // each fl::Loss with whole exponents and with others
  fl::Terms terms;
  DType logits, target;
};
constexpr int kLosses = 8, kOutputs = 8, kTerms = 4;

inline fl::Options draw_options(const KernelOf& of, bool any, Choices& choices) {
  const auto exponent = [&] {
    const double whole = double(choices.below(5));
    if (of.loss % 2 == 0 && choices.one_in(8)) return choices.of({1e30, 1e3, 150.0});
    return of.loss % 2 != 0 ? whole : whole + choices.of({0.5, 1e-3, 0.25});
  };
  const double unit = choices.of({0.25, 0.0, 1.0, 0.7, 1e-9});
  using Real = std::optional<double>;
  Real gamma, alpha, beta, gamma_neg, gamma_pos, clip;
  std::optional<bool> iou_weighted;
  switch (fl::Loss(of.loss / 2)) {
    case fl::Loss::kBce:
      break;
    case fl::Loss::kFocal:
      gamma = exponent();
      if (choices.one_in(2)) alpha = unit;
      break;
    case fl::Loss::kQuality:
      if (choices.one_in(2)) {
        beta = exponent();
      } else {
        gamma = exponent(), alpha = unit, iou_weighted = choices.one_in(2);
      }
      break;
    case fl::Loss::kAsymmetric:
      gamma_neg = exponent(), gamma_pos = exponent(), clip = unit;
  }
  const uint64_t which = fl::has_options(of.terms) ? choices.below(8) : 0;
  std::optional<int64_t> ignore_index;
  if ((which & 1) != 0) ignore_index = choices.of<int64_t>({-100, 0, 1, 255, INT64_MAX, INT64_MIN});
  return fl::options_of("sanitize", (which & 2) != 0 ? unit : 0.0, ignore_index, gamma, alpha, beta, iou_weighted,
                        gamma_neg, gamma_pos, clip, (which & 4) != 0);
}

// outer x middle x inner elements, of which an operand has some and repeats.
struct Shape {
  int64_t outer, middle, inner;
};
inline int64_t divisor_of(int64_t n, Choices& choices) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= n && d <= 20000; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors.empty() ? 1 : divisors[choices.below(divisors.size())];
}
inline Shape draw_shape(int64_t numel, Choices& choices) {
  const int64_t middle = divisor_of(numel, choices), inner = middle == 0 ? 1 : divisor_of(numel / middle, choices);
  return {numel / middle / inner, middle, inner};
}

enum class Layout { kScalar, kFull, kInner, kMiddle, kOuter, kOuterMiddle, kMiddleInner, kLayouts };
inline Operand laid_out(Layout layout, const Shape& shape) {
  const auto [outer, middle, inner] = shape;
  const Operand as[] = {{nullptr, {}, 1, 1},
                        {nullptr, {}, 1, outer * middle * inner},
                        {nullptr, {}, 1, inner},
                        {nullptr, {}, inner, middle},
                        {nullptr, {}, middle * inner, outer},
                        {nullptr, {}, inner, outer * middle},
                        {nullptr, {}, 1, middle * inner}};
  Operand result = as[int(layout)];
  if (result.size == 1) result.inner = 1;
  return result;
}

class ElementsCheck {
 public:
  explicit ElementsCheck(std::vector<const fl::Isa*> isas) : isas_(std::move(isas)) {}

  Elements draw(const KernelOf& of, int64_t numel, bool any, Choices& choices) {
    arena_.clear();
    const Shape shape = draw_shape(numel, choices);
    Elements made;
    made.output = of.output;
    made.any = any;
    Problem& problem = made.problem;
    problem.numel = numel;
    problem.options = draw_options(of, any, choices);
    const auto drawn = [&](Kind kind, Layout layout, DType dtype) {
      Operand operand = laid_out(layout, shape);
      operand.dtype = dtype;
      char* const data = arena_.take(operand.size * size_of(dtype), size_of(dtype), choices);
      fill(kind, dtype, data, operand.size, any, choices);
      operand.data = data;
      return operand;
    };
    const auto layout = [&] { return Layout(choices.below(uint64_t(Layout::kLayouts))); };
    const auto dtype = [&] { return DType(choices.below(9)); };
    const auto floating = [&] { return DType(choices.below(4)); };

    if (of.output != Output::kCount) problem.logits = drawn(Kind::kLogit, Layout::kFull, of.logits);
    if (is_floating(of.target) || of.output == Output::kCount || shape.middle < 2 || choices.one_in(2)) {
      problem.target = drawn(Kind::kTarget, choices.one_in(3) ? layout() : Layout::kFull, of.target);
    } else {
      draw_classes(problem, shape, of.target, choices);
    }
    if (fl::has_weights(of.terms)) {
      const uint64_t which = choices.below(3);
      const auto weight = [&](bool differentiated) {
        return drawn(Kind::kWeight, layout(), differentiated || choices.one_in(2) ? floating() : dtype());
      };
      if (which != 0 || of.output == Output::kGradWeight) problem.weight = weight(of.output == Output::kGradWeight);
      if (which != 1 || of.output == Output::kGradPosWeight) {
        problem.pos_weight = weight(of.output == Output::kGradPosWeight);
      }
    }
    if (fl::has_options(of.terms) && choices.one_in(2)) problem.mask = drawn(Kind::kMask, layout(), DType::kUInt8);
    problem.compute_double = of.logits == DType::kFloat64 || of.target == DType::kFloat64;
    if (of.output == Output::kCount) {
      problem.compute_double = of.target == DType::kFloat64 || of.target == DType::kInt32 || of.target == DType::kInt64;
    }
    if (fl::takes_grad_output(of.output) && choices.one_in(2)) {
      problem.grad_output = drawn(Kind::kFactor, layout(), floating());
    } else if (of.output == Output::kLossSumAndGrad && choices.one_in(2)) {
      problem.grad_output = drawn(Kind::kFactor, Layout::kScalar, floating());
    }
    if (choices.one_in(2)) problem.scale = 1 / double(numel + 1);
    if (fl::has_elements(of.output)) draw_out(made, choices);
    made.words = words(made, of, shape);
    return made;
  }

  void check(const Elements& of, bool threads) {
    g_case = of.words;
    const Results expected = run(of, of.problem, *isas_.back(), false);
    for (const fl::Isa* isa : isas_) {
      g_case = of.words + " on " + isa->name;
      expect_same(of, run(of, of.problem, *isa, threads), expected,
                  threads ? "on threads" : "on another instruction set");
    }
    g_case = of.words;
    if (!of.any && of.problem.numel > 0) {
      expect_no_nan(expected.elements, "result");
      expect_no_nan(expected.sums, "sum");
    }
    of.problem.compute_double ? check_in_full<double>(of, expected) : check_in_full<float>(of, expected);
  }

  size_t kernels() const { return kernels_.size(); }
  uint64_t runs() const { return runs_; }

 private:
  struct Results {
    Result elements, sums;
  };

  void draw_classes(Problem& problem, const Shape& shape, DType dtype, Choices& choices) {
    const int64_t size = shape.outer * shape.inner;
    char* const data = arena_.take(size * size_of(dtype), size_of(dtype), choices);
    for (int64_t i = 0; i < size; ++i) encode(dtype, data, i, double(choices.below(uint64_t(shape.middle) + 2)) - 1);
    problem.target = {data, dtype, shape.inner, size, shape.middle};
  }

  void draw_out(Elements& made, Choices& choices) {
    Problem& problem = made.problem;
    const Operand* const like[] = {nullptr,         &problem.logits, nullptr,         nullptr,
                                   &problem.logits, &problem.target, &problem.weight, &problem.pos_weight};
    const Operand* const of = like[int(made.output)];
    const bool given = of != nullptr && of->data != nullptr && is_floating(of->dtype);
    problem.out_dtype = given ? of->dtype : DType(choices.below(4));
    const size_t element = size_of(problem.out_dtype), bytes = problem.numel * element;
    made.in_place = problem.numel > 0 && of == &problem.logits && choices.one_in(4);
    problem.out = made.in_place ? const_cast<void*>(problem.logits.data) : arena_.take(bytes, element, choices);
    if (made.in_place) made.logits.assign(static_cast<char*>(problem.out), static_cast<char*>(problem.out) + bytes);
  }

  Results run(const Elements& of, const Problem& problem, const fl::Isa& isa, bool threads) {
    const int64_t count = fl::chunks(problem.numel);
    const size_t bytes = problem.numel * size_of(problem.out_dtype);
    if (fl::has_elements(of.output)) {
      if (of.in_place && problem.out == of.problem.out) {
        memcpy(problem.out, of.logits.data(), bytes);
      } else {
        soil(problem.out, bytes);
      }
    }
    Random placement(runs_++);
    double* partials = nullptr;  // as bce_tile_ has it
    if (fl::has_sum(of.output)) {
      partials = reinterpret_cast<double*>(sums_.place(count * sizeof(double), sizeof(double), placement));
      soil(partials, count * sizeof(double));
    }
    on_threads(count, threads,
               [&](int64_t first, int64_t last) { isa.kernel(problem, first, last, of.output, partials); });
    Results results;
    if (fl::has_elements(of.output)) results.elements = Result::copy(problem.out_dtype, problem.out, problem.numel);
    if (partials != nullptr) results.sums = Result::copy(DType::kFloat64, partials, count);
    return results;
  }
  static void expect_same(const Elements& of, const Results& results, const Results& expected, const char* what) {
    ::expect_same(results.elements, expected.elements, what, [&](int64_t i) { return values_at(of, i); });
    ::expect_same(results.sums, expected.sums, what);
  }
  static std::string values_at(const Elements& of, int64_t i) {
    std::string text = "; there";
    for (const auto& [name, operand] : named(of.problem)) {
      if (operand->data == nullptr || operand->classes > 0) continue;
      const void* const data = of.in_place && operand == &of.problem.logits ? of.logits.data() : operand->data;
      char value[64];
      snprintf(value, sizeof(value), " %s %a", name,
               decoded<double>(operand->dtype, data, i / operand->inner % operand->size));
      text += value;
    }
    return text;
  }
  static std::vector<std::pair<const char*, const Operand*>> named(const Problem& p) {
    return {{"logits", &p.logits},         {"target", &p.target}, {"weight", &p.weight},
            {"pos_weight", &p.pos_weight}, {"mask", &p.mask},     {"grad_output", &p.grad_output}};
  }

  // The operand as problem.h defines it, element by element.
  template <class C>
  Operand in_full(const Operand& operand, int64_t numel, const fl::Options& options, Choices& placement) {
    if (operand.data == nullptr) return {};
    char* const data = arena_.take(numel * sizeof(C), sizeof(C), placement);
    for (int64_t i = 0; i < numel; ++i) {
      if (operand.classes == 0) {
        put(data, i, decoded<C>(operand.dtype, operand.data, i / operand.inner % operand.size));
      } else {
        const int64_t own = i / operand.inner % operand.classes,
                      where = i / (operand.inner * operand.classes) * operand.inner + i % operand.inner,
                      index = decoded<int64_t>(operand.dtype, operand.data, where);
        put(data, i, options.has_ignore_index && index == options.ignore_index ? C(NAN) : C(index == own));
      }
    }
    return {data, fl::kDType<C>, 1, numel};
  }
  template <class C>
  void check_in_full(const Elements& of, const Results& expected) {
    const Problem& given = of.problem;
    Random placement(runs_);
    if (of.in_place) memcpy(given.out, of.logits.data(), of.logits.size());
    Problem problem = given;
    const auto full = [&](const Operand& operand) {
      return in_full<C>(operand, given.numel, given.options, placement);
    };
    problem.logits = full(given.logits);
    problem.target = full(given.target);
    problem.weight = full(given.weight);
    problem.pos_weight = full(given.pos_weight);
    problem.mask = full(given.mask);
    if (fl::takes_grad_output(of.output)) problem.grad_output = full(given.grad_output);
    if (given.target.classes > 0) {  // indices that are ignored stand there as NaN
      problem.options.has_ignore_index = false;
      problem.options.ignore_nan = true;
    }
    if (of.in_place) problem.out = arena_.take(of.logits.size(), size_of(problem.out_dtype), placement);
    expect_same(of, run(of, problem, *isas_.front(), false), expected, "with operands in full");
    if (given.numel != 1 || of.output != Output::kLossSum) return;
    C loss;
    problem.out = arena_.take(sizeof(C), sizeof(C), placement);
    problem.out_dtype = fl::kDType<C>;
    Elements one = of;
    one.output = Output::kLoss;
    const Results alone = run(one, problem, *isas_.front(), false);
    loss = at<C>(alone.elements.values.data(), 0);
    const double as_sum = double(loss) + 0.0;  // never -0.0
    ::expect_same(expected.sums, Result::copy(DType::kFloat64, &as_sum, 1), "sum of one loss");
  }

  std::string words(const Elements& made, const KernelOf& of, const Shape& shape) {
    const Problem& p = made.problem;
    kernels_.insert({int(of.output), of.loss, int(fl::terms_of(p, of.output)), int(p.logits.dtype), int(p.target.dtype),
                     int(p.out_dtype), p.target.classes > 0});
    std::string text = "output " + std::to_string(int(of.output)) + ", loss " + std::to_string(of.loss) + ", terms " +
                       std::to_string(int(fl::terms_of(p, of.output))) + ", " + std::to_string(p.numel) +
                       " elements (" + std::to_string(shape.outer) + " x " + std::to_string(shape.middle) + " x " +
                       std::to_string(shape.inner) + (made.in_place ? "), in place" : ")") +
                       (made.any ? ", any values" : "");
    char more[200];
    snprintf(more, sizeof(more),
             ", gamma %g, gamma_pos %g, alpha %g, clip %g, smoothing %g, ignore_index %d %lld, nan %d", p.options.gamma,
             p.options.gamma_pos, p.options.alpha, p.options.clip, p.options.label_smoothing,
             p.options.has_ignore_index, (long long)p.options.ignore_index, p.options.ignore_nan);
    text += more;
    for (const auto& [name, operand] : named(p)) {
      if (operand->data == nullptr) continue;
      text += std::string(", ") + name + " dtype " + std::to_string(int(operand->dtype)) + " inner " +
              std::to_string(operand->inner) + " size " + std::to_string(operand->size);
      if (operand->classes > 0) text += " classes " + std::to_string(operand->classes);
    }
    return text + ", out dtype " + std::to_string(int(p.out_dtype));
  }

  const std::vector<const fl::Isa*> isas_;
  Arena arena_;
  GuardedPages sums_;
  std::set<std::tuple<int, int, int, int, int, int, bool>> kernels_;
  uint64_t runs_ = 0;
};
